import { once } from "node:events";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { challengePath, HTTP_CHALLENGE, readChallenge, writeEvidence } from "../../src/evidence/http-challenge.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import type { NodeAttestor } from "./attestor.ts";

export interface HttpChallengeConfig {
  readonly hostname: string;
  readonly agentName: string;
  /** 0 takes one that is free. */
  readonly port: number;
  /** The port that the server connects to, when it's another one; 0 when not. */
  readonly advertisedPort: number;
}

const TIMEOUT_MS = 10_000;

/** Serves the server's nonce for as long as the attestation lasts. */
export function httpChallengeAttestor({
  hostname,
  agentName,
  port,
  advertisedPort,
}: HttpChallengeConfig): NodeAttestor {
  let nonce: string | undefined;
  let server: Server | undefined;
  return {
    type: HTTP_CHALLENGE,
    async evidence() {
      server = createServer({ requestTimeout: TIMEOUT_MS }, (request, response) => {
        if (nonce !== undefined && request.url === challengePath(agentName)) response.end(`${nonce}\n`);
        else response.writeHead(404).end();
      });
      const bound = await listen(server, port);
      return writeEvidence({ hostname, agentname: agentName, port: advertisedPort === 0 ? bound : advertisedPort });
    },
    async respond(challenge) {
      nonce = readChallenge(challenge);
      return Buffer.from("\n");
    },
    done() {
      nonce = undefined;
      server?.close();
      server?.closeAllConnections();
      server = undefined;
    },
  };
}

async function listen(server: Server, port: number): Promise<number> {
  try {
    server.listen(port);
    await once(server, "listening");
    return (server.address() as AddressInfo).port;
  } catch (error) {
    throw new Fault("precondition", `could not listen on port ${port}: ${messageOf(error)}`, {
      code: "http-challenge-listen",
      hint: "choose another port, or run the agent with the right to bind it",
    });
  }
}
