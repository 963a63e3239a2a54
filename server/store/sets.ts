import { type Expression, type RawBuilder, type SqlBool, sql } from "kysely";
import { Fault } from "../../src/runtime/fault.ts";
import type { SetMatch } from "./store.ts";

/** Condition on a column that holds a set as an array. All four forms use its GIN index. Throws `invalid`. */
export function matchesSet(
  column: Expression<string[]>,
  match: SetMatch,
  wanted: readonly string[],
): RawBuilder<SqlBool> {
  if (wanted.length === 0) throw new Fault("invalid", "cannot list by empty set", { code: "filter-empty" });
  switch (match) {
    case "exact":
      return sql`(${column} @> ${wanted}::text[] and ${column} <@ ${wanted}::text[])`;
    case "subset":
      return sql`(${column} <@ ${wanted}::text[] and cardinality(${column}) > 0)`;
    case "superset":
      return sql`${column} @> ${wanted}::text[]`;
    case "any":
      return sql`${column} && ${wanted}::text[]`;
  }
}
