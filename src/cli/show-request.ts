import { resolve } from "node:path";
import { protoRoot } from "../rpc/codecs.ts";
import type { Channel } from "../rpc/dial.ts";
import { protoJson } from "../rpc/proto-json.ts";
import type { Service } from "../rpc/protos.ts";

/** Fields that let whoever reads them act as somebody else. */
const SECRETS: ReadonlySet<string> = new Set(["token", "svid", "private_key"]);

type Client = Channel["client"];

interface Sent {
  readonly socketPath: string;
  readonly service: Service<object>;
  readonly method: string;
  readonly request: object;
  readonly metadata?: Readonly<Record<string, string>>;
}

/** A client that first shows each request as the `grpcurl` command that sends the same. */
export function showingRequests(client: Client, socketPath: string, show: (command: string) => void): Client {
  return ((service: Service<object>) =>
    Object.fromEntries(
      Object.entries(client(service)).map(([method, call]) => [
        method,
        (request: object, options: { readonly metadata?: Readonly<Record<string, string>> } = {}) => {
          const { metadata } = options;
          show(
            grpcurlCommand({ socketPath, service, method, request, ...(metadata === undefined ? {} : { metadata }) }),
          );
          return (call as (...args: unknown[]) => unknown)(request, options);
        },
      ]),
    )) as Client;
}

/** Not every server answers reflection, so the command names the definitions that come with this package. */
function grpcurlCommand({ socketPath, service, method, request, metadata = {} }: Sent): string {
  const words = ["grpcurl", "-plaintext", "-import-path", protoRoot, "-proto", service.file];
  for (const [name, value] of Object.entries(metadata)) words.push("-H", `${name}: ${value}`);
  words.push(
    "-d",
    protoJson(wireForm(request) as object),
    `unix://${resolve(socketPath)}`,
    `${service.name}/${method}`,
  );
  return words.map(shellWord).join(" ");
}

/** Absent fields are left out, wrapped scalars are bare as protobuf's JSON wants them, and secrets are masked. */
function wireForm(value: unknown): unknown {
  if (value instanceof Uint8Array || typeof value !== "object" || value === null) return value;
  if (Array.isArray(value)) return value.map(wireForm);
  const fields = Object.entries(value).filter(([, field]) => field !== undefined && field !== null);
  const [only] = fields;
  if (fields.length === 1 && only?.[0] === "value" && typeof only[1] !== "object") return only[1];
  return Object.fromEntries(
    fields.map(([name, field]) => [name, SECRETS.has(name) && field !== "" ? "(masked)" : wireForm(field)]),
  );
}

function shellWord(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
