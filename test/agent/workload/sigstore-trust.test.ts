import { readdir, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { openTrustedRoot } from "../../../agent/workload/sigstore/trust-source.ts";
import { FakeClock } from "../../support/clock.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { SigstoreDouble } from "../../support/sigstore.ts";
import { TufDouble } from "../../support/tuf.ts";
import { temporaryDirectory } from "../../support/workload.ts";

const scope = new AsyncDisposableStack();
const TARGET = "trusted_root.json";
const DAY_MS = 86_400_000;
let first: Buffer;
let second: Buffer;
let ids: readonly [first: string, second: string];

beforeAll(async () => {
  const [one, other] = [scope.use(await SigstoreDouble.open()), scope.use(await SigstoreDouble.open())];
  first = Buffer.from(JSON.stringify(one.trustedRoot()));
  second = Buffer.from(JSON.stringify(other.trustedRoot()));
  ids = [one.rekor.id, other.rekor.id];
});

afterAll(() => scope.disposeAsync());

interface Place {
  readonly tuf: TufDouble;
  readonly folder: string;
  readonly clock: FakeClock;
  readonly log: RecordingLog;
  /** As an agent that has just been started; gives the id of its transparency log. */
  start(): () => Promise<string>;
}

async function place(): Promise<Place> {
  const tuf = scope.use(await TufDouble.open());
  tuf.publish(TARGET, first);
  const folder = scope.use(await temporaryDirectory()).path;
  const rootPath = join(folder, "1.root.json");
  await writeFile(rootPath, tuf.root);
  const [clock, log] = [new FakeClock(), new RecordingLog()];
  const source = { type: "tuf", mirrorUrl: tuf.url, rootPath, directory: join(folder, "data") } as const;
  const start = () => {
    const trustedRoot = openTrustedRoot(source, { clock, log });
    return async () => [...(await trustedRoot()).transparencyLogs.keys()].join();
  };
  return { tuf, folder, clock, log, start };
}

test("a trusted root is fetched by TUF once a day, in a folder that nobody else reads", async () => {
  const { tuf, folder, clock, start } = await place();
  const trustedRoot = start();
  expect(await Promise.all([trustedRoot(), trustedRoot()])).toEqual([ids[0], ids[0]]);
  const asked = tuf.requests.length;
  expect(tuf.requests.filter((url) => url.endsWith("/timestamp.json"))).toHaveLength(1);
  tuf.publish(TARGET, second);
  await clock.advance(DAY_MS - 1);
  expect(await trustedRoot()).toBe(ids[0]);
  expect(tuf.requests.length).toBe(asked);
  await clock.advance(1);
  expect(await trustedRoot()).toBe(ids[1]);
  const [name = ""] = await readdir(join(folder, "data"));
  expect((await stat(join(folder, "data", name))).mode & 0o777).toBe(0o700);
});

test("a repository that is away takes nothing away, neither from a running agent nor from one that starts again", async () => {
  const { tuf, folder, clock, log, start } = await place();
  const trustedRoot = start();
  expect(await trustedRoot()).toBe(ids[0]);
  tuf.isAway = true;
  await clock.advance(DAY_MS);
  expect(await trustedRoot()).toBe(ids[0]);
  expect(await start()()).toBe(ids[0]);
  tuf.isAway = false;
  tuf.publish(TARGET, second);
  expect(await start()()).toBe(ids[1]);
  tuf.isAway = true;
  await rm(join(folder, "data"), { recursive: true });
  await clock.advance(DAY_MS);
  expect(log.lines).toEqual([]);
  expect(await trustedRoot()).toBe(ids[0]);
  expect(log.lines).toMatchObject([{ level: "warn", message: "Sigstore's trusted root is not renewed" }]);
});

test("nothing is believed that is not signed, not whole, old, or past its time", async () => {
  const spoilt: readonly ((tuf: TufDouble) => void)[] = [
    (tuf) =>
      tuf.put(
        "/timestamp.json",
        Buffer.from(String(tuf.fileAt("/timestamp.json")).replace('"version":1', '"version":9')),
      ),
    (tuf) => tuf.put(tuf.targetPath(TARGET), Buffer.from(String(first).replace("2020", "2019"))),
    (tuf) => tuf.publish(TARGET, first, { expiresInMs: -1000 }),
    (tuf) => tuf.publish("other.json", first),
  ];
  for (const spoil of spoilt) {
    const { tuf, start } = await place();
    spoil(tuf);
    await expect(start()()).rejects.toMatchObject({ kind: "unavailable", code: "trusted-root" });
  }
  const { tuf, start } = await place();
  const old = tuf.fileAt("/timestamp.json");
  tuf.publish(TARGET, second);
  expect(await start()()).toBe(ids[1]);
  tuf.put("/timestamp.json", old);
  expect(await start()()).toBe(ids[1]);
});

test("another first root begins anew", async () => {
  const [one, other] = [await place(), await place()];
  expect(await one.start()()).toBe(ids[0]);
  await writeFile(join(one.folder, "1.root.json"), other.tuf.root);
  await expect(one.start()()).rejects.toMatchObject({ code: "trusted-root" });
});
