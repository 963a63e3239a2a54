import { describe, expect, test } from "vitest";
import { bundlesOf, cachedEntry } from "../../support/endpoint.ts";
import { eventually } from "../../support/eventually.ts";
import { SECRET_TYPE, secretsIn } from "../../support/sds.ts";
import {
  chainOf,
  client,
  endpoint,
  ext,
  grant,
  issueFor,
  logged,
  mine,
  root,
  rootB,
  rootC,
  web,
} from "../../support/sds-endpoint.ts";

describe("DeltaSecrets", () => {
  test("sends what changed, and nothing else", async () => {
    using stream = client.delta();
    stream.send({ type_url: SECRET_TYPE, resource_names_subscribe: ["default", "ROOTCA"] });
    const first = await stream.response(1);
    expect(first.resources.map(({ name }) => name)).toEqual(["default", "ROOTCA"]);
    expect(first).toMatchObject({ type_url: SECRET_TYPE, removed_resources: [] });
    stream.send({ response_nonce: first.nonce });
    const rotated = await issueFor(web);
    await endpoint.accept([web, rotated]);
    const second = await stream.response(2);
    expect(second.resources.map(({ name }) => name)).toEqual(["default"]);
    expect(secretsIn(second.resources.map(({ resource }) => resource) as never)["default"]?.chain).toBe(
      chainOf(rotated),
    );
    expect(second.resources[0]?.version).not.toBe(first.resources[0]?.version);
  });

  test("follows subscriptions: a new name is sent alone, a repeated one again, one taken back no more", async () => {
    using stream = client.delta();
    stream.send({ resource_names_subscribe: ["default"] });
    await stream.response(1);
    stream.send({ resource_names_subscribe: ["spiffe://example.org/web-ext"] });
    expect((await stream.response(2)).resources.map(({ name }) => name)).toEqual(["spiffe://example.org/web-ext"]);
    stream.send({
      resource_names_subscribe: ["default"],
      resource_names_unsubscribe: ["spiffe://example.org/web-ext"],
    });
    expect((await stream.response(3)).resources.map(({ name }) => name)).toEqual(["default"]);
    await endpoint.accept([ext, await issueFor(ext)]);
    await endpoint.accept([web, await issueFor(web)]);
    expect((await stream.response(4)).resources.map(({ name }) => name)).toEqual(["default"]);
  });

  test("a name that is not the caller's is told as removed, and sent as soon as it is", async () => {
    using stream = client.delta();
    await endpoint.replace([web], bundlesOf(root, rootB, rootC));
    stream.send({ resource_names_subscribe: ["default", "spiffe://example.org/web-ext"] });
    const first = await stream.response(1);
    expect([first.resources.map(({ name }) => name), first.removed_resources]).toEqual([
      ["default"],
      ["spiffe://example.org/web-ext"],
    ]);
    await grant(endpoint, web, ext);
    const names = () => stream.responses.flatMap(({ resources }) => resources.map(({ name }) => name));
    await eventually("it is sent", () => names().includes("spiffe://example.org/web-ext"));
    await endpoint.replace([web], bundlesOf(root, rootB, rootC));
    await eventually("it is removed", () =>
      stream.responses
        .slice(1)
        .some(({ removed_resources }) => removed_resources.includes("spiffe://example.org/web-ext")),
    );
  });

  test.each([{ names: [] }, { names: ["*"] }])(
    "$names subscribes to all, those that come later too",
    async ({ names }) => {
      using stream = client.delta();
      await endpoint.replace([web], bundlesOf(root));
      stream.send({ resource_names_subscribe: names });
      const first = await stream.response(1);
      expect(first.resources.map(({ name }) => name)).toEqual(["spiffe://example.org", "spiffe://example.org/web"]);
      await endpoint.replace([ext], bundlesOf(root));
      await endpoint.accept([ext, await issueFor(ext)]);
      await eventually("the old one is removed and the new one sent", () => {
        const removed = stream.responses.flatMap(({ removed_resources }) => removed_resources);
        const sent = stream.responses.slice(1).flatMap(({ resources }) => resources.map(({ name }) => name));
        return removed.includes("spiffe://example.org/web") && sent.includes("spiffe://example.org/web-ext");
      });
    },
  );

  test("what the client still holds from an earlier stream is not sent again", async () => {
    using before = client.delta();
    before.send({ resource_names_subscribe: ["default", "ROOTCA"] });
    const { resources } = await before.response(1);
    using stream = client.delta();
    const held = Object.fromEntries(resources.map(({ name, version }) => [name, version]));
    stream.send({
      resource_names_subscribe: ["default", "ROOTCA"],
      initial_resource_versions: { ...held, ROOTCA: "an older one" },
    });
    expect((await stream.response(1)).resources.map(({ name }) => name)).toEqual(["ROOTCA"]);
  });

  test("a NACK is logged with its reason, and answered only by the next change", async () => {
    using stream = client.delta();
    stream.send({ resource_names_subscribe: ["default"] });
    const { nonce } = await stream.response(1);
    stream.send({ response_nonce: nonce, error_detail: { code: 3, message: "no such cipher" } });
    await eventually("the NACK is logged", async () =>
      (await logged("Envoy reported errors applying secrets")).some(
        ({ fields }) => (fields as { error: string }).error === "no such cipher",
      ),
    );
    expect(stream.responses).toHaveLength(1);
    await endpoint.accept([web, await issueFor(web)]);
    await stream.response(2);
  });

  test("a large state comes in parts that every client takes", async () => {
    const many = Array.from({ length: 900 }, (_, at) => cachedEntry({ id: `many/${at}`, selectors: mine }));
    const svid = await issueFor(web);
    await endpoint.replace(many, bundlesOf(root));
    await endpoint.accept(...many.map((entry) => [entry, svid] as const));
    using stream = client.delta();
    stream.send({ resource_names_subscribe: ["*"] });
    const count = () => stream.responses.reduce((sum, { resources }) => sum + resources.length, 0);
    await eventually("all have come", () => count() === 901);
    expect(stream.responses.length).toBeGreaterThan(1);
  });
});
