import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { PROJECT, packagesOf, readArrows } from "../../support/imports.ts";

test.each(["index.ts", "incubating.ts"])(
  "the client library (%s) needs no native package, no log and no database",
  (entry) => {
    const arrows = Map.groupBy(readArrows(["src"]), ({ from }) => from);
    const reached = new Set<string>();
    const follow = (path: string): void => {
      if (reached.has(path)) return;
      reached.add(path);
      for (const { to } of arrows.get(path) ?? []) follow(to);
    };
    follow(`src/client/${entry}`);
    const files = [...reached].filter((path) => !path.startsWith("src/rpc/gen/"));
    const packages = new Set(files.flatMap((path) => packagesOf(readFileSync(join(PROJECT, path), "utf8"))));
    expect([...packages].sort()).toEqual(["@grpc/grpc-js", "@grpc/proto-loader", "protobufjs"]);
  },
);
