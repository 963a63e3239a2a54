import { once } from "node:events";
import type { IncomingMessage, ServerResponse } from "node:http";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import type { Issued } from "./pki.ts";

export type Answer = (request: IncomingMessage, response: ServerResponse) => void;

/** A bundle endpoint that is not ours, and answers what the test says. */
export interface ForeignEndpoint extends AsyncDisposable {
  readonly port: number;
  /** `https://localhost:port/` */
  readonly url: string;
  answer: Answer;
  readonly requests: string[];
  /** Shows another certificate from the next connection on. */
  show(certificate: Issued): void;
}

export async function startForeignEndpoint(certificate: Issued, answer: Answer): Promise<ForeignEndpoint> {
  const pair = ({ pem, keyPem }: Issued) => ({ cert: pem, key: keyPem });
  const requests: string[] = [];
  const server = createServer(pair(certificate), (request, response) => {
    requests.push(request.url ?? "");
    endpoint.answer(request, response);
  });
  server.on("tlsClientError", () => undefined);
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  const endpoint: ForeignEndpoint = {
    ...{ port, url: `https://127.0.0.1:${port}/`, answer, requests },
    show: (next) => server.setSecureContext(pair(next)),
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((done) => server.close(done));
    },
  };
  return endpoint;
}

export function document(text: string, status = 200, headers: Readonly<Record<string, string>> = {}): Answer {
  return (_, response) => void response.writeHead(status, headers).end(text);
}
