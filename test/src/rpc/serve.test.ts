import { constants, connect as http2Connect } from "node:http2";
import { connect } from "node:net";
import { describe, expect, test } from "vitest";
import type { Call } from "../../../src/rpc/caller.ts";
import { dialUnix } from "../../../src/rpc/dial.ts";
import { HealthApi, ReflectionApi } from "../../../src/rpc/protos.ts";
import { bidi, serverStream, service, unary } from "../../../src/rpc/service.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { FakeClock } from "../../support/clock.ts";
import { eventually } from "../../support/eventually.ts";
import { faultFrom, refusal } from "../../support/faults.ts";
import { rawGrpcCall } from "../../support/http2-call.ts";
import { startRpc, type TestRpcOptions } from "../../support/rpc.ts";

const CHECK = "/grpc.health.v1.Health/Check";
const MEGABYTE = 1024 * 1024;

describe("admission", () => {
  test("runs before a message is read, and its refusal is the answer", async () => {
    const admit = async (): Promise<undefined> => {
      throw new Fault("unauthenticated", "who are you", { code: "nobody", hint: "say so" });
    };
    await using server = await startRpc({ admit });
    const session = http2Connect("http://localhost", { createConnection: () => connect(server.path) });
    const stream = session.request({ ":method": "POST", ":path": CHECK, "content-type": "application/grpc" });
    const headers = await new Promise<Record<string, unknown>>((done) => stream.on("response", done));
    expect(headers).toMatchObject({ "grpc-status": "16", "grpc-message": "who%20are%20you" });
    session.destroy();
    expect(server.outcomes).toMatchObject([{ method: CHECK, code: "Unauthenticated", fault: { code: "nobody" } }]);
  });

  test("gives the handler its result, the caller, the metadata and a request id of its own", async () => {
    const seen: Call<undefined>[] = [];
    const health = {
      Check: unary(async (_: object, call: Call<undefined>) => {
        seen.push(call);
        return { status: "SERVING" as const };
      }),
    };
    await using server = await startRpc({ health });
    using channel = dialUnix(server.path);
    await channel.client(HealthApi).Check({}, { metadata: { "x-one": "1" } });
    await channel.client(HealthApi).Check({}, { metadata: { "x-one": "2" } });
    expect(seen.map((call) => [call.method, call.metadata.get("x-one"), call.metadata.get("none")])).toEqual([
      [CHECK, ["1"], []],
      [CHECK, ["2"], []],
    ]);
    expect(new Set(seen.map((call) => call.requestId)).size).toBe(2);
    expect(new Set(seen.map((call) => call.caller.connectionId)).size).toBe(1);
    seen[0]?.log.info("here");
    expect(server.log.lines.at(-1)?.fields).toMatchObject({
      service: "grpc.health.v1.Health",
      method: "Check",
      request_id: seen[0]?.requestId,
    });
  });
});

describe("errors", () => {
  test("what a handler throws by accident stays inside: the caller learns the request id, the log the cause", async () => {
    await using server = await startRpc(checkThrows(new Error("password is hunter2")));
    using channel = dialUnix(server.path);
    const fault = await faultFrom(channel.client(HealthApi).Check({}));
    expect(fault).toMatchObject(refusal("internal", "internal"));
    expect(fault.message).toMatch(/^internal error in request [0-9a-f-]{36}$/);
    expect(fault.hint).not.toContain("hunter2");
    expect(server.log.lines).toMatchObject([
      {
        level: "error",
        message: "internal error",
        fields: { error: { message: "password is hunter2" }, request_id: fault.message.slice(-36) },
      },
    ]);
  });

  test("what it throws on purpose arrives with kind, code, hint and details", async () => {
    const details = [{ typeUrl: "type.googleapis.com/a.B", value: Buffer.from("xyz") }];
    await using server = await startRpc(
      checkThrows(new Fault("precondition", "not yet", { code: "too-early", hint: "wait", details })),
    );
    using channel = dialUnix(server.path);
    const fault = await faultFrom(channel.client(HealthApi).Check({}));
    expect(fault).toMatchObject({ kind: "precondition", message: "not yet", code: "too-early", hint: "wait" });
    expect(fault.details[0]).toEqual(details[0]);
  });

  test.each([
    { what: "line breaks and non-ASCII text", message: "first\r\nsecond: ☃ 100%" },
    { what: "control bytes", message: "a\0b\x1b[31m" },
  ])("T-X9 a message with $what arrives unchanged", async ({ message }) => {
    await using server = await startRpc(checkThrows(new Fault("invalid", message)));
    using channel = dialUnix(server.path);
    expect((await faultFrom(channel.client(HealthApi).Check({}))).message).toBe(message);
  });

  test("T-X9 half a character and a megabyte of text are sent in a form that can be", async () => {
    await using server = await startRpc(
      checkThrows(new Fault("invalid", `\ud800${"☃".repeat(400_000)}`, { hint: "x".repeat(MEGABYTE) })),
    );
    using channel = dialUnix(server.path);
    const fault = await faultFrom(channel.client(HealthApi).Check({}));
    expect(fault.kind).toBe("invalid");
    expect(fault.message).toMatch(/^\ufffd☃{600,700}\.\.\.$/);
    expect(fault.hint?.length).toBeLessThan(1000);
  });

  test.each([
    { what: "an unknown method", path: "/grpc.health.v1.Health/Nope", status: "12" },
    { what: "an unknown service", path: "/no.Such/Check", status: "12" },
    { what: "a path that names neither", path: "/", status: "12" },
  ])("$what is unimplemented", async ({ path, status }) => {
    await using server = await startRpc();
    expect((await rawGrpcCall(server.path, path)).trailers).toMatchObject({ "grpc-status": status });
  });

  test("a message that is not protobuf is refused and its handler not called", async () => {
    await using server = await startRpc(checkThrows(new Error("the handler was called")));
    expect((await rawGrpcCall(server.path, CHECK, Buffer.from([0xff, 0xff, 0xff]))).trailers).toMatchObject({
      "grpc-status": "13",
    });
    expect(server.log.lines).toEqual([]);
  });

  test("a message above the limit is refused, one of exactly the limit is not", async () => {
    await using server = await startRpc({ maxMessageBytes: 100 });
    using channel = dialUnix(server.path);
    const health = channel.client(HealthApi);
    expect(await health.Check({ service: "s".repeat(98) })).toEqual({ status: "SERVING" });
    expect(await faultFrom(health.Check({ service: "s".repeat(99) }))).toMatchObject({ kind: "exhausted" });
  });

  test("the limit is 4 MiB when nothing else is said", async () => {
    await using server = await startRpc();
    using channel = dialUnix(server.path);
    const health = channel.client(HealthApi);
    expect(await health.Check({ service: "s".repeat(4 * MEGABYTE - 10) })).toEqual({ status: "SERVING" });
    expect(await faultFrom(health.Check({ service: "s".repeat(4 * MEGABYTE) }))).toMatchObject({ kind: "exhausted" });
  });

  test.each([
    { what: "no message", send: Buffer.alloc(0) },
    { what: "two messages", send: Buffer.alloc(10) },
  ])("a call that takes one message refuses $what", async ({ send }) => {
    await using server = await startRpc(checkThrows(new Error("the handler was called")));
    const session = http2Connect("http://localhost", { createConnection: () => connect(server.path) });
    const stream = session.request({ ":method": "POST", ":path": CHECK, "content-type": "application/grpc" });
    stream.end(send);
    const headers = await new Promise<Record<string, unknown>>((done) => stream.on("response", done));
    expect(headers).toMatchObject({ "grpc-status": "12" });
    session.destroy();
  });

  test("an observer that fails disturbs nobody", async () => {
    const observe = (): never => {
      throw new Error("no");
    };
    await using server = await startRpc({ observe });
    using channel = dialUnix(server.path);
    expect(await channel.client(HealthApi).Check({})).toEqual({ status: "SERVING" });
    await eventually("a line in the log", () => server.log.lines.length === 1);
  });
});

describe("the end of a call", () => {
  test("at its deadline the client is told, the handler's signal aborted and its generator ended", async () => {
    const { health, ended, signals } = endless();
    await using server = await startRpc({ health });
    using channel = dialUnix(server.path);
    const stream = channel.client(HealthApi).Watch({}, { deadlineMs: 300 });
    expect(await faultFrom(drain(stream))).toMatchObject({ kind: "timeout" });
    await eventually("the generator to end", () => ended.length === 1);
    expect(signals[0]?.reason).toMatchObject({ kind: "timeout" });
    await eventually("the outcome", () => server.outcomes[0]?.code === "DeadlineExceeded");
  });

  test.each([
    { how: "leaves the loop", leave: (abort: AbortController) => void abort },
    { how: "aborts its signal", leave: (abort: AbortController) => abort.abort() },
  ])("when the client $how the generator is ended", async ({ leave }) => {
    const { health, ended, signals } = endless();
    await using server = await startRpc({ health });
    using channel = dialUnix(server.path);
    const abort = new AbortController();
    for await (const _ of channel.client(HealthApi).Watch({}, { signal: abort.signal })) {
      leave(abort);
      break;
    }
    await eventually("the generator to end", () => ended.length === 1);
    expect(signals[0]?.reason).toMatchObject({ kind: "cancelled" });
    expect(server.outcomes).toMatchObject([{ code: "Canceled" }]);
  });

  test("a generator that never looks at its signal is told to return where it yields", async () => {
    const ended = Promise.withResolvers<string>();
    const Watch = serverStream(async function* () {
      try {
        for (;;) yield { status: "SERVING" as const };
      } finally {
        ended.resolve("ended");
      }
    });
    await using server = await startRpc({ health: { Watch } });
    using channel = dialUnix(server.path);
    let read = 0;
    for await (const _ of channel.client(HealthApi).Watch({})) if (++read === 3) break;
    expect(await ended.promise).toBe("ended");
  });

  test("when the client's process vanishes the generator is ended", async () => {
    const { health, ended } = endless();
    await using server = await startRpc({ health });
    const socket = connect(server.path);
    const session = http2Connect("http://localhost", { createConnection: () => socket });
    session.on("error", () => {});
    const stream = session.request({
      ":method": "POST",
      ":path": "/grpc.health.v1.Health/Watch",
      "content-type": "application/grpc",
    });
    stream.on("error", () => {});
    stream.end(Buffer.alloc(5));
    await new Promise((done) => stream.once("data", done));
    socket.destroy();
    await eventually("the generator to end", () => ended.length === 1);
  });

  test("T-X9 a client that has its status and does not end its own half is asked to stop, without an error", async () => {
    const admit = async (): Promise<undefined> => {
      throw new Fault("denied", "not you", { code: "nobody" });
    };
    await using server = await startRpc({ admit });
    const session = http2Connect("http://localhost", { createConnection: () => connect(server.path) });
    const stream = session.request({ ":method": "POST", ":path": CHECK, "content-type": "application/grpc" });
    stream.write(Buffer.alloc(16 * 1024, 1));
    const ended = new Promise((done) => stream.once("end", done));
    const closed = new Promise((done) => stream.once("close", done));
    expect(await new Promise((done) => stream.once("response", done))).toMatchObject({ "grpc-status": "7" });
    stream.resume();
    await ended;
    await closed;
    expect(stream.rstCode).toBe(constants.NGHTTP2_NO_ERROR);
    expect(session.closed).toBe(false);
    session.destroy();
  });

  test("abort ends a stream with a status while its handler waits for something else", async () => {
    let running: Call<undefined> | undefined;
    const Watch = serverStream(async function* (_: object, call: Call<undefined>) {
      running = call;
      yield { status: "SERVING" as const };
      await new Promise(() => {});
    });
    await using server = await startRpc({ health: { Watch } });
    using channel = dialUnix(server.path);
    const stream = channel.client(HealthApi).Watch({})[Symbol.asyncIterator]();
    expect(await stream.next()).toMatchObject({ value: { status: "SERVING" } });
    running?.abort(new Fault("denied", "no longer entitled", { code: "revoked" }));
    expect(await faultFrom(stream.next())).toMatchObject({
      kind: "denied",
      message: "no longer entitled",
      code: "revoked",
    });
    expect(running?.signal.reason).toMatchObject({ code: "revoked" });
    await eventually(
      "one outcome",
      () => server.outcomes.length === 1 && server.outcomes[0]?.code === "PermissionDenied",
    );
  });
});

describe("flow", () => {
  test("a client that does not read holds back the generator, and then gets everything in order", async () => {
    let made = 0;
    await using server = await startRpc({ services: [bulky(() => made++, 40)] });
    using channel = dialUnix(server.path);
    const stream = channel.client(ReflectionApi).ServerReflectionInfo(one())[Symbol.asyncIterator]();
    const first = await stream.next();
    expect(first.value?.valid_host).toMatch(/^0 /);
    await noMoreThan(() => made, 30);
    const hosts = [first.value?.valid_host];
    for await (const { valid_host } of { [Symbol.asyncIterator]: () => stream }) hosts.push(valid_host);
    expect(hosts.map((host) => Number.parseInt(host ?? "", 10))).toEqual(Array.from({ length: 40 }, (_, i) => i));
  });

  test("requests that the handler does not ask for stay with the client", async () => {
    let sent = 0;
    const reading = Promise.withResolvers<void>();
    const lazy = service(ReflectionApi, {
      ServerReflectionInfo: bidi(async function* (requests) {
        await reading.promise;
        for await (const { host } of requests) yield { valid_host: String(host.length) };
      }),
    });
    await using server = await startRpc({ services: [lazy] });
    using channel = dialUnix(server.path);
    const requests = async function* () {
      for (let i = 0; i < 40; i++) {
        sent++;
        yield { host: "x".repeat(MEGABYTE) };
      }
    };
    const answers = Array.fromAsync(channel.client(ReflectionApi).ServerReflectionInfo(requests()));
    await eventually("the first request", () => sent > 0);
    await noMoreThan(() => sent, 5);
    reading.resolve();
    expect((await answers).map(({ valid_host }) => valid_host)).toEqual(
      Array.from({ length: 40 }, () => String(MEGABYTE)),
    );
  });

  test("both directions work together, message by message", async () => {
    const echo = service(ReflectionApi, {
      ServerReflectionInfo: bidi(async function* (requests) {
        for await (const { host } of requests) yield { valid_host: `${host}!` };
      }),
    });
    await using server = await startRpc({ services: [echo] });
    using channel = dialUnix(server.path);
    const { promise, resolve } = Promise.withResolvers<void>();
    const requests = async function* () {
      yield { host: "a" };
      await promise;
      yield { host: "b" };
    };
    const heard: string[] = [];
    for await (const { valid_host } of channel.client(ReflectionApi).ServerReflectionInfo(requests())) {
      heard.push(valid_host);
      resolve();
    }
    expect(heard).toEqual(["a!", "b!"]);
  });

  test("many calls at once on one connection are all answered", async () => {
    await using server = await startRpc();
    using channel = dialUnix(server.path);
    const answers = await Promise.all(Array.from({ length: 500 }, () => channel.client(HealthApi).Check({})));
    expect(answers.every(({ status }) => status === "SERVING")).toBe(true);
    expect(new Set(server.calls.map(({ caller }) => caller.connectionId)).size).toBe(1);
  });

  test("T-X9 a connection may have as many streams as configured", async () => {
    await using server = await startRpc({ maxStreamsPerConnection: 7 });
    const session = http2Connect("http://localhost", { createConnection: () => connect(server.path) });
    await new Promise((done) => session.once("remoteSettings", done));
    expect(session.remoteSettings.maxConcurrentStreams).toBe(7);
    session.destroy();
  });
});

describe("shutting down", () => {
  test("lets a call finish, ends streams as unavailable at once and accepts nobody else", async () => {
    const { promise, resolve } = Promise.withResolvers<void>();
    const { health, ended } = endless();
    const Check = unary(async () => {
      await promise;
      return { status: "SERVING" as const };
    });
    await using server = await startRpc({ health: { ...health, Check } });
    using channel = dialUnix(server.path);
    const answer = channel.client(HealthApi).Check({});
    const stream = channel.client(HealthApi).Watch({})[Symbol.asyncIterator]();
    await stream.next();
    const closed = server.rpc[Symbol.asyncDispose]();
    expect(await faultFrom(stream.next())).toMatchObject({
      kind: "unavailable",
      message: "the server is shutting down",
    });
    await eventually("the generator to end", () => ended.length === 1);
    using other = dialUnix(server.path);
    expect(await faultFrom(other.client(HealthApi).Check({}))).toMatchObject({
      kind: "unavailable",
      code: "connection-failed",
    });
    resolve();
    expect(await answer).toEqual({ status: "SERVING" });
    await closed;
  });

  test("cuts off after ten seconds what does not end by itself", async () => {
    const clock = new FakeClock();
    const Check = unary((): Promise<never> => new Promise(() => {}));
    await using server = await startRpc({ clock, health: { Check } });
    using channel = dialUnix(server.path);
    const answer = faultFrom(channel.client(HealthApi).Check({}));
    await eventually("the call", () => server.calls.length === 1);
    const closed = server.rpc[Symbol.asyncDispose]();
    await eventually("the wait", () => clock.sleeping === 1);
    await clock.advance(9_999);
    expect(server.outcomes).toEqual([]);
    await clock.advance(1);
    await closed;
    expect(await answer).toMatchObject({ kind: "unavailable" });
    expect(server.outcomes).toMatchObject([{ code: "Unavailable" }]);
  });
});

function checkThrows(error: Error): TestRpcOptions {
  const Check = unary(async (): Promise<never> => {
    throw error;
  });
  return { health: { Check } };
}

/** A stream that yields one message and then waits for its signal. */
function endless() {
  const ended: string[] = [];
  const signals: AbortSignal[] = [];
  const Watch = serverStream(async function* (_: object, { signal }: Call<undefined>) {
    signals.push(signal);
    try {
      yield { status: "SERVING" as const };
      await new Promise((_done, fail) => signal.addEventListener("abort", () => fail(signal.reason)));
    } finally {
      ended.push("ended");
    }
  });
  return { health: { Watch }, ended, signals };
}

/** Answers one request with numbered messages of a megabyte each. */
function bulky(count: () => void, messages: number) {
  return service(ReflectionApi, {
    ServerReflectionInfo: bidi(async function* () {
      for (let i = 0; i < messages; i++) {
        count();
        yield { valid_host: `${i} ${"x".repeat(MEGABYTE)}` };
      }
    }),
  });
}

async function* one() {
  yield { host: "" };
}

async function drain(stream: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of stream);
}

/** Fails when the count passes the limit while it still grows. */
async function noMoreThan(count: () => number, limit: number): Promise<void> {
  let last = -1;
  let still = 0;
  await eventually("the count to stand still", () => {
    still = count() === last ? still + 1 : 0;
    last = count();
    return still === 20;
  });
  expect(last).toBeLessThanOrEqual(limit);
}
