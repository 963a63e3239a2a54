import { writeFile } from "node:fs/promises";
import { type AddressInfo, createServer } from "node:net";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import type { Call } from "../../../src/rpc/caller.ts";
import { connectionFault } from "../../../src/rpc/connection-fault.ts";
import { dialTls, dialUnix } from "../../../src/rpc/dial.ts";
import { HealthApi, type MethodTypes, ReflectionApi, type Service } from "../../../src/rpc/protos.ts";
import { bidi, clientStream, serverStream, service, unary } from "../../../src/rpc/service.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { eventually } from "../../support/eventually.ts";
import { faultFrom, refusal } from "../../support/faults.ts";
import { startRpc } from "../../support/rpc.ts";
import { temporaryDirectory } from "../../support/workload.ts";

describe("a connection that cannot be made", () => {
  test("to a path with nothing there says so", async () => {
    await using folder = await temporaryDirectory();
    const path = join(folder.path, "api.sock");
    using channel = dialUnix(path);
    const fault = await faultFrom(channel.client(HealthApi).Check({}));
    expect(fault).toMatchObject(refusal("unavailable", "connection-failed"));
    expect(fault.message).toBe(`could not connect to unix://${path}: nothing listens there`);
    expect(fault.hint).toBe("check the address, and that the program behind it runs");
  });

  test("to a file that is no socket says that nothing listens", async () => {
    await using folder = await temporaryDirectory();
    const path = join(folder.path, "file");
    await writeFile(path, "");
    using channel = dialUnix(path);
    expect((await faultFrom(channel.client(HealthApi).Check({}))).message).toBe(
      `could not connect to unix://${path}: nothing listens there`,
    );
  });

  test("to a port with nothing there says so", async () => {
    const port = await freePort();
    using channel = dialTls({ address: "127.0.0.1", port, verifyServer: () => {} });
    expect((await faultFrom(channel.client(HealthApi).Check({}))).message).toBe(
      `could not connect to 127.0.0.1:${port}: nothing listens there`,
    );
  });

  test("to a server that does not speak TLS says that the handshake failed", async () => {
    const plain = createServer((socket) => socket.on("error", () => {}).end("hello"));
    const port = await listening(plain);
    using channel = dialTls({ address: "127.0.0.1", port, verifyServer: () => {} });
    const fault = await faultFrom(channel.client(HealthApi).Check({}));
    expect(fault).toMatchObject(refusal("unavailable", "tls-handshake"));
    expect(fault.message).toMatch(/^could not connect to 127\.0\.0\.1:\d+: TLS handshake failed: /);
    plain.close();
  });

  test.each([
    { details: "No connection established. Last error: Error: connect EACCES /a", text: "permission denied" },
    { details: "Name resolution failed for target dns:a.b:1", text: "the host name is not known" },
    {
      details: "round_robin: No connection established. Last error: connect ETIMEDOUT",
      text: "the host does not answer",
    },
    {
      details: "No connection established. Last error: Failed to connect (2026). Resolution note: ",
      text: "the server closed the connection",
    },
  ])("is explained: $text", ({ details, text }) => {
    const fault = connectionFault(new Fault("unavailable", details), {
      target: "there",
      lastFault: () => new Fault("denied", "an older one"),
    });
    expect(fault).toMatchObject({ kind: "unavailable", message: `could not connect to there: ${text}` });
    expect(fault.hint).toBeDefined();
  });

  test("is not confused with what a server answers", async () => {
    await using server = await startRpc({
      health: { Check: unary(() => Promise.reject(new Fault("unavailable", "not ready: ECONNREFUSED upstream"))) },
    });
    using channel = dialUnix(server.path);
    expect(await faultFrom(channel.client(HealthApi).Check({}))).toMatchObject({
      ...refusal("unavailable", "unavailable"),
      message: "not ready: ECONNREFUSED upstream",
    });
  });
});

test("a connection that is lost during a call says so, and the next call makes another", async () => {
  const first = await startRpc({ health: { Check: unary(() => new Promise<never>(() => {})) } });
  using channel = dialUnix(first.path, { backoff: { firstMs: 50, maxMs: 50 } });
  const answer = faultFrom(channel.client(HealthApi).Check({}));
  const call = await eventually("the call", () => first.calls[0]);
  call.abort(new Fault("aborted", "go away"));
  expect(await answer).toMatchObject({ kind: "aborted" });
  await first[Symbol.asyncDispose]();
  expect(await faultFrom(channel.client(HealthApi).Check({}))).toMatchObject({ kind: "unavailable" });
});

test("WEP-24 a call that waits for a connection is answered once the socket appears", async () => {
  await using server = await startRpc();
  const path = `${server.path}2`;
  using channel = dialUnix(path, { backoff: { firstMs: 20, maxMs: 50 } });
  const health = channel.client(HealthApi);
  expect(await faultFrom(health.Check({}))).toMatchObject({ kind: "unavailable" });
  const waiting = health.Check({}, { waitForReady: true, deadlineMs: 20_000 });
  await server.rpc.listenUnix({ path, mode: 0o777 });
  expect(await waiting).toEqual({ status: "SERVING" });
});

describe("ending a call", () => {
  test("by a signal that is aborted already makes no call", async () => {
    await using server = await startRpc();
    using channel = dialUnix(server.path);
    const reason = new Error("stop");
    const options = { signal: AbortSignal.abort(reason) };
    await expect(channel.client(HealthApi).Check({}, options)).rejects.toBe(reason);
    await expect(Array.fromAsync(channel.client(HealthApi).Watch({}, options))).rejects.toBe(reason);
    expect(server.calls).toEqual([]);
  });

  test("by a signal fails with the signal's own reason, and the server learns of it", async () => {
    await using server = await startRpc({ health: { Check: unary(() => new Promise<never>(() => {})) } });
    using channel = dialUnix(server.path);
    const stop = new AbortController();
    const reason = new Error("stop");
    const answer = channel.client(HealthApi).Check({}, { signal: stop.signal });
    answer.catch(() => {});
    await eventually("the call", () => server.calls.length === 1);
    stop.abort(reason);
    await expect(answer).rejects.toBe(reason);
    await eventually("the end", () => server.outcomes[0]?.code === "Canceled");
  });

  test("of a stream by a signal fails with the signal's own reason", async () => {
    await using server = await startRpc({ health: { Watch: serverStream(stalling) } });
    using channel = dialUnix(server.path);
    const stop = new AbortController();
    const reason = new Error("stop");
    const reading = Array.fromAsync(channel.client(HealthApi).Watch({}, { signal: stop.signal }));
    reading.catch(() => {});
    await eventually("the call", () => server.calls.length === 1);
    stop.abort(reason);
    await expect(reading).rejects.toBe(reason);
  });

  test("by its deadline is a timeout", async () => {
    await using server = await startRpc({ health: { Check: unary(() => new Promise<never>(() => {})) } });
    using channel = dialUnix(server.path);
    expect(await faultFrom(channel.client(HealthApi).Check({}, { deadlineMs: 50 }))).toMatchObject({ kind: "timeout" });
  });
});

describe("streams", () => {
  test("that nobody reads are never started", async () => {
    await using server = await startRpc();
    using channel = dialUnix(server.path);
    channel.client(HealthApi).Watch({});
    await channel.client(HealthApi).Check({});
    expect(server.calls.map(({ method }) => method)).toEqual(["/grpc.health.v1.Health/Check"]);
  });

  test("an error of the caller's own requests reaches the caller as it is and ends the call", async () => {
    await using server = await startRpc({ services: [echo()] });
    using channel = dialUnix(server.path);
    const own = new Error("no more");
    const requests = async function* () {
      yield { host: "a" };
      await eventually("the call", () => server.calls.length === 1);
      throw own;
    };
    await expect(Array.fromAsync(channel.client(ReflectionApi).ServerReflectionInfo(requests()))).rejects.toBe(own);
    await eventually("the end", () => server.outcomes.length === 1);
  });

  test("the requests are told to return when the server ends the call first", async () => {
    const once = service(ReflectionApi, {
      ServerReflectionInfo: bidi(async function* (requests: AsyncIterable<{ readonly host: string }>) {
        for await (const { host } of requests) {
          yield { valid_host: host };
          throw new Fault("exhausted", "one is enough");
        }
      }),
    });
    await using server = await startRpc({ services: [once] });
    using channel = dialUnix(server.path);
    const returned = Promise.withResolvers<string>();
    const requests = async function* () {
      try {
        for (;;) yield { host: "a".repeat(100_000) };
      } finally {
        returned.resolve("returned");
      }
    };
    expect(
      await faultFrom(Array.fromAsync(channel.client(ReflectionApi).ServerReflectionInfo(requests()))),
    ).toMatchObject({ kind: "exhausted" });
    expect(await returned.promise).toBe("returned");
  });
});

test("a call with many requests and one response works, and fails with the error of its requests", async () => {
  const method = HealthApi.methods()["Check"];
  if (method === undefined) throw new Error("there is no such method");
  type Counting = {
    readonly Check: MethodTypes & { readonly sendRequest: { service: string }; readonly kind: "clientStream" };
  };
  const counting: Service<Counting> = {
    name: "grpc.health.v1.Health",
    file: HealthApi.file,
    methods: () => ({ Check: { ...method, requestStream: true } }),
  };
  const Check = clientStream(async (requests: AsyncIterable<object>) => {
    const all = await Array.fromAsync(requests);
    return { status: all.length };
  });
  await using server = await startRpc({ services: [service(counting, { Check })] });
  using channel = dialUnix(server.path);
  const requests = async function* (count: number) {
    for (let i = 0; i < count; i++) yield { service: "a" };
    if (count > 2) throw new Error("no more");
  };
  expect(await channel.client(counting).Check(requests(2))).toEqual({ status: "NOT_SERVING" });
  await expect(channel.client(counting).Check(requests(3))).rejects.toThrow("no more");
});

test("a channel that is closed refuses calls", async () => {
  await using server = await startRpc();
  const channel = dialUnix(server.path);
  const health = channel.client(HealthApi);
  await health.Check({});
  channel[Symbol.dispose]();
  await expect(health.Check({})).rejects.toThrow(/closed|shut down/i);
});

async function* stalling(_: object, { signal }: Call<undefined>) {
  yield { status: "SERVING" as const };
  await new Promise((_done, fail) => signal.addEventListener("abort", () => fail(signal.reason)));
}

function echo() {
  return service(ReflectionApi, {
    ServerReflectionInfo: bidi(async function* (requests: AsyncIterable<{ readonly host: string }>) {
      for await (const { host } of requests) yield { valid_host: host };
    }),
  });
}

async function listening(server: ReturnType<typeof createServer>): Promise<number> {
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  return (server.address() as AddressInfo).port;
}

async function freePort(): Promise<number> {
  const server = createServer();
  const port = await listening(server);
  await new Promise((done) => server.close(done));
  return port;
}
