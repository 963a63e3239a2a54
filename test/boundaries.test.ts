import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { type Arrow, arrowsOf, PROJECT, packagesOf, readArrows, sourceFiles } from "./support/imports.ts";

/**
 * Who may import whom. A room is the longest prefix that fits; `may` lists the prefixes it may import besides itself.
 * Everything not listed is refused, so a new folder needs a row.
 */
const ROOMS: readonly { readonly room: string; readonly may: readonly string[] }[] = [
  { room: "src/runtime/", may: [] },
  { room: "src/crypto/", may: ["src/runtime/"] },
  { room: "src/tpm/", may: ["src/runtime/", "src/crypto/"] },
  { room: "src/spiffe/", may: ["src/runtime/", "src/crypto/"] },
  { room: "src/keys/", may: ["src/runtime/", "src/crypto/", "src/tpm/", "src/spiffe/"] },
  { room: "src/evidence/", may: ["src/runtime/", "src/crypto/", "src/tpm/", "src/spiffe/"] },
  { room: "src/rpc/", may: ["src/runtime/", "src/crypto/", "src/tpm/", "src/spiffe/", "src/keys/", "src/evidence/"] },
  { room: "src/client/", may: ["src/runtime/", "src/crypto/", "src/tpm/", "src/spiffe/", "src/keys/", "src/rpc/"] },
  { room: "src/cli/", may: ["src/runtime/", "src/crypto/", "src/spiffe/", "src/rpc/"] },
  { room: "src/dev/", may: ["src/"] },

  { room: "server/main.ts", may: ["src/", "server/cli/", "server/run.ts"] },
  { room: "server/run.ts", may: ["src/", "server/"] },
  { room: "server/parts.ts", may: ["src/", "server/"] },
  { room: "server/transfer.ts", may: ["src/", "server/config.ts", "server/store/"] },
  { room: "server/config.ts", may: ["src/", "server/config/"] },
  { room: "server/config/", may: ["src/"] },
  { room: "server/events.ts", may: ["src/", "server/store/store.ts"] },
  { room: "server/health.ts", may: ["src/"] },
  { room: "server/measured.ts", may: ["src/", "server/store/store.ts"] },
  { room: "server/janitor.ts", may: ["src/", "server/store/store.ts", "server/events.ts"] },
  { room: "server/cli/", may: ["src/", "server/config.ts", "server/run.ts", "server/transfer.ts"] },
  {
    room: "server/api/",
    may: ["src/", "server/ca/", "server/attest/", "server/directory/", "server/store/store.ts", "server/events.ts"],
  },
  {
    room: "server/federation/",
    may: ["src/", "server/directory/", "server/store/store.ts", "server/events.ts", "server/config.ts"],
  },
  { room: "server/ca/", may: ["src/", "server/store/store.ts", "server/events.ts"] },
  { room: "server/attest/", may: ["src/", "server/store/store.ts", "server/events.ts"] },
  { room: "server/directory/", may: ["src/", "server/store/store.ts", "server/events.ts"] },
  { room: "server/store/", may: ["src/", "server/config.ts"] },
  { room: "server/keys/", may: ["src/"] },

  { room: "agent/main.ts", may: ["src/", "agent/cli/", "agent/run.ts"] },
  { room: "agent/run.ts", may: ["src/", "agent/"] },
  { room: "agent/parts.ts", may: ["src/", "agent/"] },
  { room: "agent/endpoints.ts", may: ["src/", "agent/"] },
  {
    room: "agent/broker-endpoint.ts",
    may: ["src/", "agent/api/", "agent/config/", "agent/call-events.ts", "agent/events.ts"],
  },
  { room: "agent/config.ts", may: ["src/", "agent/config/"] },
  { room: "agent/config/", may: ["src/"] },
  { room: "agent/events.ts", may: ["src/"] },
  { room: "agent/call-events.ts", may: ["src/"] },
  { room: "agent/health.ts", may: ["src/"] },
  { room: "agent/cli/", may: ["src/", "agent/config.ts", "agent/run.ts"] },
  { room: "agent/api/", may: ["src/", "agent/cache/", "agent/workload/", "agent/node/", "agent/events.ts"] },
  { room: "agent/cache/", may: ["src/", "agent/node/", "agent/events.ts"] },
  { room: "agent/workload/", may: ["src/", "agent/events.ts"] },
  { room: "agent/node/", may: ["src/", "agent/config.ts", "agent/events.ts"] },
];

/** Packages that only these folders may import: each has one owner. */
const OWNED_PACKAGES: Readonly<Record<string, string>> = {
  "@grpc/grpc-js": "src/rpc/",
  "@grpc/proto-loader": "src/rpc/",
  "@grpc/reflection": "src/rpc/",
  protobufjs: "src/rpc/",
  koffi: "src/",
  pg: "server/store/",
  kysely: "server/store/",
  "@electric-sql/pglite": "server/store/",
  "@sigstore/tuf": "agent/workload/sigstore/",
  pino: "src/runtime/",
  yaml: "src/runtime/",
};

function roomOf(path: string): (typeof ROOMS)[number] | undefined {
  return ROOMS.filter(({ room }) => path.startsWith(room)).sort((a, b) => b.room.length - a.room.length)[0];
}

function complaint({ from, to }: Arrow): string | undefined {
  const room = roomOf(from);
  if (room === undefined) return `${from} stands in no room`;
  if (to.startsWith("test/")) return `${from} imports ${to}: nothing imports test`;
  if (room.room.endsWith("/") && to.startsWith(room.room)) return undefined;
  return room.may.some((prefix) => to.startsWith(prefix)) ? undefined : `${from} imports ${to}`;
}

describe("who may import whom", () => {
  test("no import goes the wrong way", () => {
    const wrong = readArrows(["src", "server", "agent"]).map(complaint).filter(Boolean);
    expect(wrong).toEqual([]);
  });

  test("every file stands in a room", () => {
    const homeless = ["src", "server", "agent"].flatMap(sourceFiles).filter((path) => roomOf(path) === undefined);
    expect(homeless).toEqual([]);
  });

  test("a service in api never imports another's file", () => {
    const services =
      /^(server|agent)\/api\/(agent|entry|svid|bundle|trust-domain|logger|debug|workload|sds|broker)\.ts$/;
    const wrong = readArrows(["server", "agent"]).filter(({ from, to }) => services.test(from) && services.test(to));
    expect(wrong).toEqual([]);
  });

  test("a package has one owner", () => {
    const wrong = ["src", "server", "agent"].flatMap(sourceFiles).flatMap((path) =>
      packagesOf(readFileSync(join(PROJECT, path), "utf8"))
        .map((name) => Object.keys(OWNED_PACKAGES).find((owned) => name === owned || name.startsWith(`${owned}/`)))
        .filter((owned) => owned !== undefined && !path.startsWith(OWNED_PACKAGES[owned] ?? ""))
        .map((owned) => `${path} imports ${owned}`),
    );
    expect(wrong).toEqual([]);
  });

  test.each([
    { from: "server/api/entry.ts", text: 'import { x } from "../../agent/run.ts";', what: "server imports agent" },
    {
      from: "agent/api/workload.ts",
      text: 'import type { X } from "../../server/run.ts";',
      what: "agent imports server",
    },
    {
      from: "src/crypto/der.ts",
      text: 'import { x } from "../spiffe/id.ts";',
      what: "a lower layer imports a higher one",
    },
    { from: "src/rpc/serve.ts", text: 'import "../../server/run.ts";', what: "src imports server" },
    {
      from: "server/directory/follow.ts",
      text: 'import {\n  a,\n  b,\n} from "../api/routes.ts";',
      what: "directory imports api",
    },
    {
      from: "server/api/svid.ts",
      text: 'import { openStore } from "../store/database.ts";',
      what: "api imports an implementation",
    },
    { from: "agent/node/state.ts", text: 'const x = await import("../cache/sync.ts");', what: "node imports cache" },
    { from: "server/run.ts", text: 'export { x } from "../test/support/pki.ts";', what: "production imports test" },
  ])("a planted wrong import is seen: $what", ({ from, text }) => {
    const arrows = arrowsOf(from, text);
    expect(arrows).toHaveLength(1);
    expect(arrows.map(complaint).filter(Boolean)).toHaveLength(1);
  });
});
