import { fetchX509Svid, watchX509Svids } from "../../src/client/index.ts";
import { OWN_SELECTOR, startAgent } from "../support/agent.ts";
import { startServer } from "../support/server.ts";
import { rssMb, spread } from "./stats.ts";

const FETCHES = 300;
const ENTRIES = 20;

/** FetchX509SVID from the agent's cache: a new connection, attestation and the answer each time. */
export async function measureFetch(): Promise<string[]> {
  await using server = await startServer({ server: { log_level: "INFO" } });
  await using agent = await startAgent(server, { agent: { log_level: "INFO" } });
  await server.createEntry({
    spiffeId: "spiffe://example.org/bench",
    parentId: await agentId(server),
    selectors: [OWN_SELECTOR],
  });
  await using watched = agent.watch();
  await watched.until("an identity", () => true);
  const times: number[] = [];
  for (let index = 0; index < FETCHES; index++) {
    const started = performance.now();
    await fetchX509Svid({ socket: agent.socket });
    times.push(performance.now() - started);
  }
  return [
    `connect, attest, first answer, client included: ${spread(times)}`,
    `agent RSS afterwards ${rssMb(agent.pid).toFixed(0)} MB`,
  ];
}

/** From `entry create` to the SVID on a stream that was open before. */
export async function measureEntryToSvid(): Promise<string[]> {
  await using server = await startServer({ server: { log_level: "INFO" } });
  await using agent = await startAgent(server, { agent: { log_level: "INFO", experimental: { sync_interval: "5s" } } });
  await agent.untilLogged("Changes are pushed by the server");
  return [`pushed, sync interval 5s: ${spread(await entriesToSvids(server, agent.socket))}`];
}

async function entriesToSvids(server: Awaited<ReturnType<typeof startServer>>, socket: string): Promise<number[]> {
  const parentId = await agentId(server);
  const stop = new AbortController();
  const times: number[] = [];
  const open = Promise.withResolvers<void>();
  let waiting: { readonly id: string; readonly since: number; done(): void } | undefined;
  const watching = (async () => {
    for await (const { svids } of watchX509Svids({ socket, signal: stop.signal })) {
      open.resolve();
      if (waiting === undefined || !svids.some(({ id }) => id === waiting?.id)) continue;
      times.push(performance.now() - waiting.since);
      waiting.done();
    }
  })();
  await server.createEntry({
    spiffeId: "spiffe://example.org/first",
    parentId,
    selectors: [OWN_SELECTOR],
  });
  await open.promise;
  for (let index = 0; index < ENTRIES; index++) {
    const id = `spiffe://example.org/bench/${index}`;
    await new Promise<void>((resolve, reject) => {
      waiting = { id, since: performance.now(), done: resolve };
      server.createEntry({ spiffeId: id, parentId, selectors: [OWN_SELECTOR] }).catch(reject);
    });
  }
  stop.abort();
  await watching;
  return times;
}

async function agentId(server: Awaited<ReturnType<typeof startServer>>): Promise<string> {
  const { agents } = await server.admin.agent.ListAgents({});
  const id = agents[0]?.id;
  return `spiffe://${id?.trust_domain}${id?.path}`;
}
