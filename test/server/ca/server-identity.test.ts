import { X509Certificate } from "node:crypto";
import { beforeEach, describe, expect, test } from "vitest";
import { Issuer } from "../../../server/ca/issue.ts";
import { ServerIdentity } from "../../../server/ca/server-identity.ts";
import type { X509SigningAuthority } from "../../../server/ca/slots.ts";
import { Fault } from "../../../src/runtime/fault.ts";
import { Feed } from "../../../src/runtime/feed.ts";
import { eventually } from "../../support/eventually.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { id, ManualClock, makeAuthority, messagesOf, opensslVerify, TD } from "./support.ts";

let clock: ManualClock;
let log: RecordingLog;
let active: Feed<X509SigningAuthority | undefined>;
let first: X509SigningAuthority;

beforeEach(async () => {
  clock = new ManualClock();
  log = new RecordingLog();
  first = await makeAuthority();
  active = new Feed<X509SigningAuthority | undefined>(first);
});

function open(ttlSeconds = 3600): Promise<ServerIdentity> {
  const signing = (): X509SigningAuthority => {
    if (active.value === undefined) throw new Fault("unavailable", "X509 CA is not available for signing");
    return active.value;
  };
  const issuer = new Issuer({
    trustDomain: TD,
    authorities: { signing },
    defaultTtlSeconds: ttlSeconds,
    agentTtlSeconds: ttlSeconds,
    caTtlSeconds: ttlSeconds,
    clock,
  });
  return ServerIdentity.open({ issuer, authorities: { active }, keyType: "ec-p256", clock, log });
}

function running(server: ServerIdentity): AsyncDisposable {
  const stop = new AbortController();
  const ended = server.run(stop.signal).catch(() => undefined);
  return {
    async [Symbol.asyncDispose]() {
      stop.abort();
      await ended;
    },
  };
}

function serial(server: ServerIdentity): string {
  return server.svid.serialNumber;
}

/** Waits until a check has been made at the time that the clock shows. */
async function checked(): Promise<void> {
  await eventually("the next check is set", () => clock.sleepers > 0);
}

describe("the server's own SVID", () => {
  test("has the server's ID and the key that TLS gets, and is verified under the active authority", async () => {
    const server = await open();
    const { chain, privateKey } = server.identity.value;
    const leaf = new X509Certificate(chain[0] ?? new Uint8Array());
    expect(leaf.subjectAltName).toBe(`URI:${id("/spire/server")}`);
    expect(leaf.checkPrivateKey(privateKey)).toBe(true);
    expect(chain).toHaveLength(1);
    expect(await opensslVerify(chain[0] ?? new Uint8Array(), first.certificate.raw, clock.now())).toContain("OK");
  });

  test("is issued anew, with a new key, at every start", async () => {
    const [one, two] = [await open(), await open()];
    expect(serial(one)).not.toBe(serial(two));
    expect(one.identity.value.privateKey.equals(two.identity.value.privateKey)).toBe(false);
  });

  test("is renewed at half of its life, and not before", async () => {
    const server = await open();
    const before = serial(server);
    await using _ = running(server);
    await checked();
    clock.move(1790);
    await checked();
    expect(serial(server)).toBe(before);
    clock.move(20);
    await eventually("a new one is there", () => serial(server) !== before);
    const { serialNumber } = new X509Certificate(server.identity.value.chain[0] ?? new Uint8Array());
    expect(BigInt(`0x${serialNumber}`).toString()).toBe(serial(server));
  });

  test("is renewed at once when another authority is active", async () => {
    const server = await open();
    const before = serial(server);
    await using _ = running(server);
    await checked();
    const second = await makeAuthority();
    active.set(second);
    await eventually("a new one is there", () => serial(server) !== before);
    expect(
      await opensslVerify(server.identity.value.chain[0] ?? new Uint8Array(), second.certificate.raw, clock.now()),
    ).toContain("OK");
  });

  test("an expired one is no dead end, and one that cannot be renewed is kept and tried again", async () => {
    const server = await open(60);
    const before = serial(server);
    await using _ = running(server);
    await checked();
    active.set(undefined);
    clock.move(7200);
    await eventually("a failure is logged", () => messagesOf(log, "error").includes("Could not rotate server SVID"));
    expect(serial(server)).toBe(before);
    active.set(await makeAuthority({ now: clock.now() }));
    await eventually("a new one is there", () => serial(server) !== before);
    expect(server.svid.notAfter > clock.now()).toBe(true);
  });

  test("without an authority the server does not start with one", async () => {
    active.set(undefined);
    await expect(open()).rejects.toThrow("X509 CA is not available for signing");
  });
});
