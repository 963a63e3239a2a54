import { afterAll, beforeAll, expect, test } from "vitest";
import { parseJws } from "../../../src/crypto/jws.ts";
import { ContinuityApi } from "../../../src/rpc/protos.ts";
import { faultFrom } from "../../support/faults.ts";
import { type Apis, startServer, type TestServer } from "../../support/server.ts";

let server: TestServer;
let stranger: Apis;
beforeAll(async () => {
  server = await startServer();
  stranger = server.connect();
});
afterAll(async () => {
  stranger?.[Symbol.dispose]();
  await server?.[Symbol.asyncDispose]();
});

const ask = (...authority_ids: string[]) => stranger.channel.client(ContinuityApi).GetBundleLinks({ authority_ids });

test("T-N12 anyone is told what authorities said, until they are tainted, and no more than was asked for", async () => {
  const { localAuthority } = server.admin;
  const first = (await localAuthority.GetX509AuthorityState({})).active?.authority_id ?? "";
  expect(await ask(first)).toEqual({ links: [] });
  const { prepared_authority } = await localAuthority.PrepareX509Authority({});
  const second = prepared_authority?.authority_id ?? "";
  const { links } = await ask(first, first, second);
  expect(links.map(({ statement }) => parseJws(statement).header["kid"])).toEqual([first]);
  expect(links[0]?.x509_authorities).toHaveLength(2);
  expect(await ask()).toEqual({ links: [] });
  await localAuthority.ActivateX509Authority({ authority_id: second });
  await localAuthority.TaintX509Authority({ authority_id: first });
  expect(await ask(first)).toEqual({ links: [] });
});

test("T-F4 a list of authorities that nobody holds is refused", async () => {
  const ids = Array.from({ length: 65 }, (_, index) => `id-${index}`);
  expect(await faultFrom(ask(...ids))).toMatchObject({ kind: "invalid", message: "more than 64 authority IDs" });
  expect(await ask(...ids.slice(1))).toEqual({ links: [] });
});
