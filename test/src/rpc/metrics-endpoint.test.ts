import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { type RequestOptions, request } from "node:https";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type MetricsTls, serveMetrics } from "../../../src/rpc/metrics-endpoint.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { Feed } from "../../../src/runtime/feed.ts";
import { parseSpiffeId } from "../../../src/spiffe/id.ts";
import { validateX509Svid } from "../../../src/spiffe/x509-svid.ts";
import { eventually } from "../../support/eventually.ts";
import { faultFrom } from "../../support/faults.ts";
import { createCa, type Issued, type TestCa } from "../../support/pki.ts";
import { RecordingLog } from "../../support/recording-log.ts";

let ca: TestCa;
let folder = "";
beforeAll(async () => {
  ca = await createCa();
  folder = await mkdtemp(join(tmpdir(), "steeple-metrics-"));
});
afterAll(() => rm(folder, { recursive: true }));

const MONITOR = parseSpiffeId("spiffe://example.org/monitor");

async function start(tls?: Omit<MetricsTls, "verify"> & Partial<Pick<MetricsTls, "verify">>) {
  const scope = new AsyncDisposableStack();
  const log = new RecordingLog();
  const verify: MetricsTls["verify"] = (chain) =>
    validateX509Svid({ chain, authorities: () => [ca.certificate], at: new Date() });
  const endpoint = scope.use(
    await serveMetrics({
      ...{ host: "localhost", port: 0, text: () => "x 1\n", clock: systemClock, log },
      tls: tls && { verify, ...tls },
    }),
  );
  const stop = new AbortController();
  const running = endpoint.run(stop.signal).catch(() => {});
  scope.defer(async () => {
    stop.abort();
    await running;
  });
  return { ...endpoint, log, [Symbol.asyncDispose]: () => scope.disposeAsync() };
}

/** The body and the certificate that was shown; rejects when the connection is refused. */
function scrape(port: number, options: RequestOptions = {}): Promise<{ status: number; body: string; shown: Buffer }> {
  return new Promise((done, fail) => {
    const asked = request(
      { host: "127.0.0.1", port, rejectUnauthorized: false, agent: false, ...options },
      (response) => {
        const shown =
          (response.socket as import("node:tls").TLSSocket).getPeerX509Certificate()?.raw ?? Buffer.alloc(0);
        let body = "";
        response.on("data", (chunk) => {
          body += chunk;
        });
        response.on("end", () => done({ status: response.statusCode ?? 0, body, shown }));
        response.on("error", fail);
      },
    );
    asked.on("error", fail).end();
  });
}

const asClient = ({ pem, keyPem }: Issued): RequestOptions => ({ cert: pem, key: keyPem });
const identityOf = ({ chain, signer }: Issued) => ({ chain, privateKey: signer.privateKey });

describe("without TLS", () => {
  test("T-F6 listens on loopback unless told otherwise, and answers at every path", async () => {
    await using endpoint = await start();
    expect(endpoint.address).toBe("127.0.0.1");
    const response = await fetch(`http://127.0.0.1:${endpoint.port}/metrics`);
    expect(response.headers.get("content-type")).toBe("text/plain; version=0.0.4; charset=utf-8");
    expect(await response.text()).toBe("x 1\n");
    expect(await (await fetch(`http://127.0.0.1:${endpoint.port}/`)).text()).toBe("x 1\n");
  });

  test("T-X9 nothing but reading, and garbage harms nobody", async () => {
    await using endpoint = await start();
    const posted = await fetch(`http://127.0.0.1:${endpoint.port}/`, { method: "POST", body: "x" });
    expect(posted.status).toBe(405);
    const socket = connect(endpoint.port, "127.0.0.1");
    socket
      .on("error", () => {})
      .resume()
      .write(Buffer.alloc(20_000, 0xff));
    await new Promise((done) => socket.once("close", done));
    expect((await fetch(`http://127.0.0.1:${endpoint.port}/`)).status).toBe(200);
  });

  test("a port that is taken is named, with the keys to change", async () => {
    await using endpoint = await start();
    const second = serveMetrics({
      ...{ host: "127.0.0.1", port: endpoint.port, text: () => "", clock: systemClock, log: new RecordingLog() },
    });
    expect(await faultFrom(second)).toMatchObject({ kind: "precondition", code: "port-in-use" });
  });
});

describe("with certificate files", () => {
  async function files(name: string, issued: Issued): Promise<{ certFile: string; keyFile: string }> {
    const paths = { certFile: join(folder, `${name}.pem`), keyFile: join(folder, `${name}.key`) };
    await writeFile(paths.certFile, issued.pem);
    await writeFile(paths.keyFile, issued.keyPem);
    return paths;
  }

  test("serves by HTTPS, and asks nobody for a certificate", async () => {
    const leaf = await ca.issue();
    const settings = { useSvid: false, authorizedIds: [], files: await files("plain", leaf) } as const;
    await using endpoint = await start({ settings, identity: new Feed(undefined) });
    const { body, shown } = await scrape(endpoint.port);
    expect(body).toBe("x 1\n");
    expect(shown.equals(leaf.der)).toBe(true);
  });

  test("client_ca_file: only clients of that authority", async () => {
    const clientCaFile = join(folder, "clients.pem");
    await writeFile(clientCaFile, ca.pem);
    const settings = {
      useSvid: false,
      authorizedIds: [],
      files: { ...(await files("mutual", await ca.issue())), clientCaFile },
    } as const;
    await using endpoint = await start({ settings, identity: new Feed(undefined) });
    expect((await scrape(endpoint.port, asClient(await ca.issue()))).body).toBe("x 1\n");
    await expect(scrape(endpoint.port)).rejects.toThrow();
    await expect(scrape(endpoint.port, asClient(await (await createCa()).issue()))).rejects.toThrow();
  });

  test("files that are missing stop the start, naming the file", async () => {
    const settings = {
      useSvid: false,
      authorizedIds: [],
      files: { certFile: join(folder, "none.pem"), keyFile: join(folder, "none.key") },
    } as const;
    expect(await faultFrom(start({ settings, identity: new Feed(undefined) }))).toMatchObject({
      kind: "precondition",
      message: expect.stringContaining("none"),
    });
  });
});

describe("with the program's own SVID", () => {
  test("shows it, and each new one", async () => {
    const [first, second] = [await ca.issue(), await ca.issue()];
    const identity = new Feed<ReturnType<typeof identityOf> | undefined>(undefined);
    await using endpoint = await start({ settings: { useSvid: true, authorizedIds: [] }, identity });
    await expect(scrape(endpoint.port)).rejects.toThrow();
    for (const issued of [first, second]) {
      identity.set(identityOf(issued));
      await eventually("the SVID is shown", async () => {
        const answer = await scrape(endpoint.port).catch(() => undefined);
        return answer?.shown.equals(issued.der) === true;
      });
    }
  });

  test("T-F6 authorized_spiffe_ids: that ID, of our authority, still valid, and nobody else", async () => {
    const identity = new Feed(identityOf(await ca.issue()));
    await using endpoint = await start({ settings: { useSvid: true, authorizedIds: [MONITOR] }, identity });
    const monitor = await ca.issue({ id: MONITOR });
    expect((await scrape(endpoint.port, asClient(monitor))).body).toBe("x 1\n");
    const refused = [
      {},
      asClient(await ca.issue({ id: "spiffe://example.org/monitor/2" })),
      asClient(await (await createCa()).issue({ id: MONITOR })),
      asClient(await ca.issue({ id: MONITOR, notAfter: new Date(Date.now() - 1000) })),
    ];
    for (const options of refused) await expect(scrape(endpoint.port, options)).rejects.toThrow();
    expect(endpoint.log.lines.some(({ message }) => message === "Connection refused")).toBe(true);
  });

  test("T-C6 trust that ends while a connection is open ends the answers on it", async () => {
    let trusted = true;
    const identity = new Feed(identityOf(await ca.issue()));
    const { Agent } = await import("node:https");
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    const verify: MetricsTls["verify"] = (chain) =>
      validateX509Svid({ chain, authorities: () => (trusted ? [ca.certificate] : []), at: new Date() });
    await using endpoint = await start({ settings: { useSvid: true, authorizedIds: [MONITOR] }, identity, verify });
    const client = asClient(await ca.issue({ id: MONITOR }));
    expect((await scrape(endpoint.port, { ...client, agent })).status).toBe(200);
    trusted = false;
    expect(await scrape(endpoint.port, { ...client, agent })).toMatchObject({ status: 403, body: "" });
    agent.destroy();
  });
});
