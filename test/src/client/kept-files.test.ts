import { chmod, mkdir, readdir, readFile, readlink, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { pidReference } from "../../../src/client/broker-reference.ts";
import { type KeptFilesOptions, keepX509Files } from "../../../src/client/kept-files.ts";
import type { X509Source } from "../../../src/client/x509-source.ts";
import { FakeClock } from "../../support/clock.ts";
import { eventually } from "../../support/eventually.ts";
import { hold, refuse } from "../../support/fake-agent.ts";
import { faultFrom, refusal } from "../../support/faults.ts";
import type { Issued } from "../../support/pki.ts";
import { isRoot, temporaryDirectory } from "../../support/workload.ts";
import { type BrokerAt, brokerAt } from "./broker-fixture.ts";
import { makeWorld, svidMessage, svidPart, type World } from "./fixtures.ts";

let world: World;
let newer: Issued;
beforeAll(async () => {
  world = await makeWorld();
  newer = await world.intA.issue();
});

const update = () => svidMessage(world, { svids: [svidPart(world, newer)] });
const withHints = (...hints: readonly string[]) =>
  svidMessage(world, { svids: hints.map((hint) => svidPart(world, world.leafA, { hint })) });

/** Chance that differs from draw to draw. */
class Dice extends FakeClock {
  #draws = 0;

  override random = (): number => {
    this.#draws += 1;
    return (this.#draws * 0.618_033_988_749) % 1;
  };
}

/** Files being kept, with everything that was told. */
class Keeping implements AsyncDisposable {
  readonly folder: string;
  readonly kept: Promise<void>;
  changes = 0;
  readonly #stop = new AbortController();

  constructor(source: X509Source, folder: string, options: Partial<KeptFilesOptions> = {}) {
    this.folder = folder;
    const onChange = (): void => {
      this.changes += 1;
    };
    this.kept = keepX509Files(source, { folder, onChange, ...options, signal: this.#stop.signal });
  }

  read(name: string): Promise<string> {
    return readFile(join(this.folder, "current", name), "utf8");
  }

  changed(times: number): Promise<unknown> {
    return eventually(`change ${times}`, () => this.changes >= times);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.kept.catch(() => undefined);
  }
}

const sourceAt = ({ client }: BrokerAt): Promise<X509Source> => client.workload(pidReference(7)).x509Source();

describe("files for a workload", () => {
  test("BRK-43 a hundred workloads get one update one after another, each within the time set, and the first at once", async () => {
    await using scope = new AsyncDisposableStack();
    const clock = new Dice();
    const at = scope.use(await brokerAt(world, {}, hold(svidMessage(world))));
    const { path } = scope.use(await temporaryDirectory());
    const keepings: Keeping[] = [];
    for (let i = 0; i < 100; i += 1) {
      const source = scope.use(await sourceAt(at));
      keepings.push(scope.use(new Keeping(source, join(path, String(i)), { clock, jitterMs: 10_000 })));
    }
    const updated = () => keepings.filter(({ changes }) => changes === 2).length;
    for (const keeping of keepings) await keeping.changed(1);
    expect(clock.monotonic()).toBe(0);
    for (const { stream } of at.endpoint.calls) stream.send(update());
    await eventually("all wait", () => clock.sleeping === 100);
    expect(updated()).toBe(0);
    for (const share of [25, 50, 75, 100]) {
      await clock.advance(2_500);
      await eventually("all that are due are written", () => updated() === 100 - clock.sleeping);
      expect(Math.abs(updated() - share)).toBeLessThanOrEqual(2);
    }
    expect(updated()).toBe(100);
  });

  test("BRK-43 updates that follow each other end the wait no later, and the last one is written", async () => {
    await using scope = new AsyncDisposableStack();
    const clock = new FakeClock();
    const at = scope.use(await brokerAt(world, {}, hold(svidMessage(world))));
    const { path } = scope.use(await temporaryDirectory());
    const source = scope.use(await sourceAt(at));
    const keeping = scope.use(new Keeping(source, path, { clock, jitterMs: 10_000 }));
    await keeping.changed(1);
    const stream = at.endpoint.calls[0]!.stream;
    stream.send(withHints("between"));
    await eventually("the wait", () => clock.sleeping === 1);
    await clock.advance(4_999);
    stream.send(withHints("last"));
    await eventually("the update", () => source.svid.hint === "last");
    await clock.advance(1);
    await keeping.changed(2);
    expect((await readdir(join(path, "current"))).sort()).toEqual(["federated", "last"]);
  });

  test("BRK-58 are gone at once when the identities are withdrawn, also while an update waits, and come back", async () => {
    await using scope = new AsyncDisposableStack();
    const clock = new FakeClock();
    const at = scope.use(await brokerAt(world, { clock }, hold(svidMessage(world)), refuse(7), hold(update())));
    const { path } = scope.use(await temporaryDirectory());
    const options = { clock, retryRefused: true };
    const source = scope.use(await at.client.workload(pidReference(7)).x509Source(options));
    const keeping = scope.use(new Keeping(source, path, { clock: new FakeClock(), jitterMs: 10_000 }));
    await keeping.changed(1);
    const [call] = at.endpoint.calls;
    call?.stream.send(update());
    await eventually("the update", () => source.svid.chain[0]?.serialNumber === newer.certificate.serialNumber);
    call?.stream.end(7);
    await keeping.changed(2);
    expect(await readdir(path)).toEqual([]);
    await eventually("the identity again", async () => {
      if (clock.sleeping > 0) await clock.advance(1_000);
      return keeping.changes === 3;
    });
    expect(await keeping.read("@0/svid.pem")).toBe(newer.pem);
  });

  test("BRK-68 lie under names that no hint can lead elsewhere", async () => {
    await using scope = new AsyncDisposableStack();
    const hints = ["internal", "..", ".", "a/../../b", "federated", "", "", "é".repeat(512), "%2E"];
    const at = scope.use(await brokerAt(world, {}, hold(withHints(...hints))));
    const { path } = scope.use(await temporaryDirectory());
    const source = scope.use(await sourceAt(at));
    const keeping = scope.use(new Keeping(source, join(path, "mine"), {}));
    await keeping.changed(1);
    expect(await readdir(path)).toEqual(["mine"]);
    const names = await readdir(join(path, "mine", "current"));
    expect(names).toHaveLength(hints.length + 1);
    expect(names).toEqual(expect.arrayContaining(["internal", "%2E%2E", "a%2F..%2F..%2Fb", "%66ederated", "@5", "@6"]));
    for (const name of names)
      if (name !== "federated") expect(await keeping.read(`${name}/svid.pem`)).toContain("BEGIN");
  });

  test("are swapped whole, for nobody else, with the bundles of others; files of others stay", async () => {
    await using scope = new AsyncDisposableStack();
    const federated = { "spiffe://partner.test": world.rootB.der };
    const at = scope.use(await brokerAt(world, {}, hold(svidMessage(world, { federated_bundles: federated }))));
    const { path } = scope.use(await temporaryDirectory());
    await writeFile(join(path, "other"), "stays");
    await mkdir(join(path, "0123456789abcdef"));
    const source = scope.use(await sourceAt(at));
    const keeping = scope.use(new Keeping(source, path, { jitterMs: 0 }));
    await keeping.changed(1);
    expect(await keeping.read("@0/svid.pem")).toBe(world.leafA.pem);
    expect(await keeping.read("@0/svid_key.pem")).toBe(world.leafA.keyPem);
    expect(await keeping.read("@0/bundle.pem")).toBe(world.rootA.pem);
    expect(await keeping.read("federated/partner.test.pem")).toBe(world.rootB.pem);
    const version = await readlink(join(path, "current"));
    expect((await stat(join(path, version))).mode & 0o777).toBe(0o700);
    expect((await stat(join(path, version, "@0", "svid_key.pem"))).mode & 0o777).toBe(0o600);
    at.endpoint.calls[0]?.stream.send(update());
    await keeping.changed(2);
    expect(await keeping.read("@0/svid.pem")).toBe(newer.pem);
    expect((await readdir(path)).sort()).toEqual([await readlink(join(path, "current")), "current", "other"].sort());
    await keeping[Symbol.asyncDispose]();
    expect(await readdir(path)).toEqual(["other"]);
  });

  test.skipIf(!isRoot)("may be read by a group, which may change nothing", async () => {
    await using scope = new AsyncDisposableStack();
    const at = scope.use(await brokerAt(world, {}, hold(svidMessage(world))));
    const { path } = scope.use(await temporaryDirectory());
    const folder = join(path, "mine");
    const keeping = scope.use(new Keeping(scope.use(await sourceAt(at)), folder, { group: 65_532 }));
    await keeping.changed(1);
    const current = join(folder, "current");
    for (const [name, mode] of [
      [folder, 0o750],
      [current, 0o750],
      [join(current, "@0"), 0o750],
      [join(current, "@0", "svid_key.pem"), 0o640],
    ] as const) {
      const found = await stat(name);
      expect([found.uid, found.gid, found.mode & 0o777]).toEqual([0, 65_532, mode]);
    }
  });

  test("where others could change them, or nothing can be written, are an error", async () => {
    await using at = await brokerAt(world, {}, hold(svidMessage(world)));
    await using place = await temporaryDirectory();
    await using source = await sourceAt(at);
    const { signal } = new AbortController();
    const open = join(place.path, "open");
    await mkdir(open);
    await chmod(open, 0o777);
    await writeFile(join(place.path, "taken"), "");
    for (const folder of [open, join(place.path, "taken")])
      expect(await faultFrom(keepX509Files(source, { folder, signal }))).toMatchObject(
        refusal("precondition", "directory-unsafe"),
      );
    expect(await readdir(open)).toEqual([]);
  });
});
