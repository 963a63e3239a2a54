import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { isSpiffeId } from "../../src/spiffe/id.ts";
import { PROJECT } from "../support/server-process.ts";
import { spiffeLibrary } from "./library.ts";
import { Peer } from "./peer.ts";

const program = process.env["INTEROP_GO_SPIFFE"] ?? "";

const go = (...args: readonly string[]): readonly string[] => [program, ...args];

spiffeLibrary({ name: "go-spiffe", run: go, rotations: go("handshakes", "21") });

describe("go-spiffe by itself", () => {
  test("T-S2: it and our parser accept the same SPIFFE IDs", async () => {
    const vectors = ["spiffe-id.valid.txt", "spiffe-id.invalid.txt"].flatMap((file) =>
      readFileSync(join(PROJECT, "test/vectors", file), "utf8").split("\n"),
    );
    const piece = fc.constantFrom(
      "spiffe://",
      "spiffe:/",
      "a",
      "A",
      "-",
      "_",
      ".",
      "..",
      "/",
      "//",
      "%2f",
      "?",
      "#",
      ":",
      "@",
      "é",
      " ",
      "0",
      "example.org",
    );
    const made = fc.sample(
      fc.array(piece, { maxLength: 8 }).map((parts) => parts.join("")),
      20_000,
    );
    const prefixed = made.map((text) => `spiffe://td/${text}`);
    // Ours refuses more than 2048 bytes, which the standard leaves open.
    const candidates = [...vectors, ...made, ...prefixed].filter((text) => text.length <= 2048 && text.isWellFormed());
    await using peer = new Peer(go("parse"), "", candidates.map((text) => `${JSON.stringify(text)}\n`).join(""));
    const answers = (await peer.result()).trim().split("\n");
    expect(answers).toHaveLength(candidates.length);
    const different = candidates.filter((text, index) => isSpiffeId(text) !== (answers[index] === "ok"));
    expect(different).toEqual([]);
    expect(answers.filter((answer) => answer === "ok").length).toBeGreaterThan(100);
  });
});
