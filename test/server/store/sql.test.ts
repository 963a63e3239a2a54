import { readdirSync, readFileSync } from "node:fs";
import { stripTypeScriptTypes } from "node:module";
import { describe, expect, test } from "vitest";
import { parseAst } from "vitest/node";

interface Node {
  readonly type: string;
  readonly [field: string]: unknown;
}

/** Two words that stand together in statements and in no message. */
const STATEMENT =
  /\b(select\s+\S+.*\bfrom|insert\s+into|update\s+\w+\s+set|delete\s+from|create\s+(table|index|role)|drop\s+\w+|where\s+\S+\s*(=|<|>|in\b|like\b)|order\s+by|set\s+\w+\s*=)/is;
/** Kysely's doors to text that is not a bound parameter or a quoted name. */
const RAW = new Set(["raw", "lit", "literal"]);

function isNode(value: unknown): value is Node {
  return typeof value === "object" && value !== null && typeof (value as Node).type === "string";
}

function textOf(node: Node): string {
  if (node.type === "Literal") return String(node["value"]);
  if (node.type !== "TemplateLiteral") return "";
  return (node["quasis"] as readonly { value: { raw: string } }[]).map(({ value }) => value.raw).join("?");
}

function nameOf(node: unknown): string {
  return isNode(node) && node.type === "Identifier" ? String(node["name"]) : "";
}

/** A constant, or text without holes. */
function isFixed(node: unknown): boolean {
  if (!isNode(node)) return false;
  if (node.type === "Literal") return true;
  if (node.type === "TemplateLiteral") return (node["expressions"] as readonly unknown[]).length === 0;
  return /^[A-Z][A-Z_\d]*$/.test(nameOf(node)) || nameOf(node) === "sql" || nameOf(node) === "text";
}

function complaint(node: Node, parent: Node | undefined): string | undefined {
  const holes = node.type === "TemplateLiteral" && (node["expressions"] as readonly unknown[]).length > 0;
  const tagged = parent?.type === "TaggedTemplateExpression" && nameOf(parent["tag"]) === "sql";
  if (holes && !tagged && STATEMENT.test(textOf(node))) return `interpolated: ${textOf(node)}`;
  if (node.type === "BinaryExpression" && node["operator"] === "+") {
    const sides = [node["left"], node["right"]].filter(isNode).map(textOf);
    if (sides.some((text) => STATEMENT.test(text))) return `concatenated: ${sides.join(" + ")}`;
  }
  if (node.type === "MemberExpression" && ["sql", "CompiledQuery"].includes(nameOf(node["object"]))) {
    if (RAW.has(nameOf(node["property"]))) return `raw text: ${nameOf(node["object"])}.${nameOf(node["property"])}`;
  }
  if (node.type === "CallExpression" && isNode(node["callee"]) && node["callee"].type === "MemberExpression") {
    const [first] = node["arguments"] as readonly unknown[];
    if (nameOf(node["callee"]["property"]) === "query" && !isFixed(first)) return "query() of text that is not fixed";
  }
  return undefined;
}

/** What in the source makes SQL out of anything but fixed text and bound parameters. */
function unboundSql(source: string): readonly string[] {
  const found: string[] = [];
  const walk = (node: Node, parent?: Node): void => {
    const problem = complaint(node, parent);
    if (problem !== undefined) found.push(problem);
    for (const value of Object.values(node)) {
      for (const child of Array.isArray(value) ? value : [value]) if (isNode(child)) walk(child, node);
    }
  };
  walk(parseAst(stripTypeScriptTypes(source)) as unknown as Node);
  return found;
}

describe("T-F3 SQL is fixed text with bound parameters", () => {
  const folder = new URL("../../../server/store/", import.meta.url);
  const files = readdirSync(folder).filter((name) => name.endsWith(".ts"));

  test("there are sources to look at", () => expect(files).toContain("entries.ts"));

  test.each(files)("in server/store/%s", (name) => {
    expect(unboundSql(readFileSync(new URL(name, folder), "utf8"))).toEqual([]);
  });

  test.each([
    { source: `db.query(\`select * from t where id = '\${id}'\`);`, what: "an interpolated statement" },
    { source: "db.query('select * from t where id = ' + id);", what: "a concatenated statement" },
    { source: `const q = \`delete from \${table}\`; db.query(q);`, what: "a statement made beforehand" },
    { source: "const q = 'insert into t values (' + v + ')';", what: "a concatenation that is only kept" },
    { source: "sql.raw(text);", what: "Kysely's raw text" },
    { source: `sql\`select \${sql.lit(value)}\`;`, what: "Kysely's literal" },
    { source: "CompiledQuery.raw(text);", what: "a compiled raw query" },
    { source: "db.query(makeQuery());", what: "a query from somewhere" },
  ])("the check finds $what", ({ source }) => {
    expect(unboundSql(source)).not.toEqual([]);
  });

  test.each([
    { source: `sql\`select * from t where id = \${id}\`.execute(db);`, what: "a tagged template" },
    { source: "db.query('select 1');", what: "fixed text" },
    { source: "db.query(NOTIFY, [id]);", what: "a constant" },
    { source: `log(\`deleted \${count} rows\`);`, what: "a message" },
  ])("the check lets $what pass", ({ source }) => {
    expect(unboundSql(source)).toEqual([]);
  });
});
