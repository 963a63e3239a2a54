import { open } from "node:fs/promises";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import type { NodeAttestor } from "./attestor.ts";

/** Where the token comes from. Both absent is allowed: an agent that has its SVID needs none. */
export interface JoinTokenSource {
  readonly joinToken?: string;
  readonly joinTokenFile?: string;
}

const MAX_TOKEN_FILE_BYTES = 4096;
const NEXT_STEP = 'run "steeple-server token generate" and pass the token with -joinToken or join_token';

/** Shows a token that the server takes once. A file is read when it is needed, so it may be gone afterwards. */
export function joinTokenAttestor(source: JoinTokenSource): NodeAttestor {
  return {
    type: "join_token",
    async evidence() {
      const token = source.joinTokenFile === undefined ? source.joinToken : await readToken(source.joinTokenFile);
      if (token === undefined || token === "") {
        throw new Fault("invalid", "join token was not provided", { code: "join-token-missing", hint: NEXT_STEP });
      }
      return Buffer.from(token);
    },
    async respond() {
      throw new Fault("internal", "the server sent a challenge to a join token", {
        code: "attestation-unexpected-challenge",
      });
    },
  };
}

async function readToken(path: string): Promise<string> {
  const token = (await readStart(path)).trim();
  if (token === "")
    throw new Fault("invalid", "join token file is empty", { code: "join-token-missing", hint: NEXT_STEP });
  return token;
}

async function readStart(path: string): Promise<string> {
  try {
    await using file = await open(path, "r");
    const { buffer, bytesRead } = await file.read(Buffer.alloc(MAX_TOKEN_FILE_BYTES), 0, MAX_TOKEN_FILE_BYTES, 0);
    return buffer.toString("utf8", 0, bytesRead);
  } catch (error) {
    throw new Fault("invalid", `unable to read join token file "${path}": ${messageOf(error)}`, {
      code: "join-token-missing",
      hint: NEXT_STEP,
      cause: error,
    });
  }
}
