import { once } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import { get } from "node:http";
import { createServer } from "node:net";
import { join } from "node:path";
import { connect } from "node:tls";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { eventually } from "../support/eventually.ts";
import { PROJECT } from "../support/server-process.ts";
import { type House, identities, Peer } from "./peer.ts";

const envoy = process.env["INTEROP_ENVOY"] ?? "";
const ROTATIONS = 6;

describe.skipIf(envoy === "")("Envoy", () => {
  let house: House;
  let proxy: Peer;
  const ports = { adminPort: 0, plainPort: 0, mutualPort: 0 };
  beforeAll(async () => {
    house = await identities(8);
    for (const name of Object.keys(ports) as (keyof typeof ports)[]) ports[name] = await freePort();
    const template = await readFile(join(PROJECT, "test/interop/envoy/envoy.yaml"), "utf8");
    const values: Readonly<Record<string, unknown>> = { ...ports, socketPath: house.agent.socketPath };
    const file = join(house.agent.folder, "envoy.yaml");
    await writeFile(
      file,
      template.replace(/\$\{(\w+)\}/g, (whole, name: string) => String(values[name] ?? whole)),
    );
    proxy = new Peer([envoy, "-c", file, "--concurrency", "1", "--log-level", "warn", "--disable-hot-restart"]);
    await eventually("Envoy answers", async () => (await fetchPlain()) === "200 mutual", 60_000);
  }, 120_000);
  afterAll(async () => {
    await proxy?.[Symbol.asyncDispose]();
    await house?.[Symbol.asyncDispose]();
  });

  test("SDS-01 both ends take their identity and bundle by SDS, and no handshake fails through rotations", async () => {
    const serials = new Set<string>();
    const answers = new Map<string, number>();
    while (serials.size < ROTATIONS) {
      serials.add(await serverSerial());
      const answer = await fetchPlain();
      answers.set(answer, (answers.get(answer) ?? 0) + 1);
    }
    expect([...answers.keys()]).toEqual(["200 mutual"]);
    expect(proxy.child.exitCode, proxy.stderr).toBeNull();
  }, 120_000);

  /** Each request makes a connection, and a handshake, of its own. */
  async function fetchPlain(): Promise<string> {
    const [response] = await once(get({ host: "127.0.0.1", port: ports.plainPort, agent: false }), "response");
    let body = "";
    for await (const chunk of response) body += chunk;
    return `${response.statusCode} ${body}`;
  }

  /** Of the certificate that the listener shows now; the handshake ends there, for want of one of ours. */
  async function serverSerial(): Promise<string> {
    const socket = connect({ host: "127.0.0.1", port: ports.mutualPort, rejectUnauthorized: false });
    socket.on("error", () => undefined);
    await once(socket, "secureConnect");
    const { serialNumber } = socket.getPeerCertificate();
    socket.destroy();
    return serialNumber;
  }
});

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  return typeof address === "object" && address !== null ? address.port : 0;
}
