import { beforeEach, expect, test } from "vitest";
import { PushStream } from "../../../server/api/push-stream.ts";
import { Directory } from "../../../server/directory/authorized.ts";
import { atOnce } from "../../../server/directory/steps.ts";
import type { WatchAuthorizedEntriesRequest__Output as Request } from "../../../src/rpc/gen/steeple/api/server/push/v1/WatchAuthorizedEntriesRequest.ts";
import { eventually } from "../../support/eventually.ts";
import { faultFrom } from "../../support/faults.ts";
import { id, ManualClock, TD } from "../ca/support.ts";
import { changeSet, makeNode } from "../directory/support.ts";

const AGENT = id("/spire/agent/join_token/one");

let stream: PushStream;
let stop: AbortController;
beforeEach(() => {
  const clock = new ManualClock();
  const directory = new Directory({ trustDomain: TD, clock });
  atOnce(directory.apply(changeSet({ nodes: [makeNode({ id: AGENT })] })));
  stop = new AbortController();
  stream = new PushStream({
    ...{ agent: AGENT, trustDomain: TD, directory, clock },
    ...{ closing: new AbortController().signal, drainSpreadMs: () => 0, progressed: () => {}, claim: () => {} },
  });
});

function revisions(...ids: readonly string[]): Request {
  const held = ids.map((id) => ({ id, revision_number: "1", created_at: "1" }));
  return {
    step: "held",
    held: { revisions: { revisions: held, more: false }, output_mask: null, digest: Buffer.alloc(0) },
  };
}

test("T-F4 an agent that sends and does not read is held back: one request waits, whatever it sends", async () => {
  let read = 0;
  async function* flood(): AsyncGenerator<Request> {
    for (; read < 100_000; read += 1) yield revisions(`entry-${read}`);
  }
  const answers = stream.run(flood(), stop.signal);
  expect((await answers.next()).value?.entries).toBeDefined();
  for (let turn = 0; turn < 1000; turn += 1) await Promise.resolve();
  expect(read).toBeLessThan(4);
  for (let more = 0; more < 50; more += 1) await answers.next();
  await eventually("what waited is read", () => read > 40);
  stop.abort();
  await answers.return();
});

test("T-F4 a revision under an ID that no entry has is refused, not kept", async () => {
  async function* requests(): AsyncGenerator<Request> {
    yield revisions("x".repeat(256));
  }
  expect(await faultFrom(stream.run(requests(), stop.signal).next())).toMatchObject({ kind: "invalid" });
});
