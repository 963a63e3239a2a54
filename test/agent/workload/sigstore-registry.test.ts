import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { homedir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { ImageVerifier } from "../../../agent/workload/image-verifier.ts";
import { parseImage } from "../../../agent/workload/sigstore/image.ts";
import { loginFiles } from "../../../agent/workload/sigstore/logins.ts";
import { openSigstore, type SigstoreOptions } from "../../../agent/workload/sigstore/open.ts";
import { systemClock } from "../../../src/runtime/clock.ts";
import { FakeClock } from "../../support/clock.ts";
import { eventually } from "../../support/eventually.ts";
import { faultOf } from "../../support/faults.ts";
import { RecordingLog } from "../../support/recording-log.ts";
import { digestOf, RegistryDouble } from "../../support/registry.ts";
import { publish, SigstoreDouble } from "../../support/sigstore.ts";
import { temporaryDirectory } from "../../support/workload.ts";

const stop = new AbortController();
const scope = new AsyncDisposableStack();
const REPOSITORY = "team/app";
const LOGIN = { username: "puller", password: "s3cret" };
let sigstore: SigstoreDouble;
let trustedRootPath: string;

beforeAll(async () => {
  sigstore = scope.use(await SigstoreDouble.open());
  trustedRootPath = join(scope.use(await temporaryDirectory()).path, "trusted_root.json");
  await writeFile(trustedRootPath, JSON.stringify(sigstore.trustedRoot()));
});

afterAll(async () => {
  stop.abort();
  await scope.disposeAsync();
});

async function verifier(options: Partial<SigstoreOptions> = {}): Promise<ImageVerifier> {
  return openSigstore({
    ...{ allows: () => true, skippedImages: new Set(), rekorUrl: sigstore.rekorUrl, registryCredentials: new Map() },
    ...{ ignoreSct: false, ignoreTlog: false, ignoreAttestations: true },
    trust: { type: "file", path: trustedRootPath },
    loginFiles: [],
    ...{ clock: systemClock, log: new RecordingLog(), signal: stop.signal },
    ...options,
  });
}

interface Held {
  readonly name: string;
  readonly tag: string;
  readonly blob: string;
}

async function signedIn(registry: RegistryDouble): Promise<Held> {
  const digest = registry.image(REPOSITORY, randomUUID());
  const layer = await sigstore.signature(digest);
  publish(registry, { repository: REPOSITORY, digest, suffix: "sig" }, [layer]);
  const name = `${registry.host}/${REPOSITORY}@${digest}`;
  return { name, tag: `${digest.replace(":", "-")}.sig`, blob: digestOf(layer.payload) };
}

describe("a registry", () => {
  test.each(["basic", "token"] as const)(
    "that asks for a login by %s gets the credentials that are its own",
    async (scheme) => {
      await using registry = await RegistryDouble.open({ login: { scheme, ...LOGIN } });
      const { name } = await signedIn(registry);
      const own = new Map([[`https://${registry.host.toUpperCase()}/v1/`, LOGIN]]);
      expect(await (await verifier({ registryCredentials: own })).verify(name)).toContain("image-signature:verified");
      for (const registryCredentials of [
        new Map(),
        new Map([["other.test", LOGIN]]),
        new Map([[registry.host, { ...LOGIN, password: "wrong" }]]),
      ]) {
        const refused = (await verifier({ registryCredentials })).verify(name);
        await expect(refused).rejects.toMatchObject({ code: "registry-refused", message: /status 401/ });
      }
    },
  );

  test("that gives tokens to anybody is asked for one without credentials", async () => {
    await using registry = await RegistryDouble.open({ login: { scheme: "token", username: "", password: "" } });
    const { name } = await signedIn(registry);
    expect(await (await verifier()).verify(name)).toContain("image-signature:verified");
    expect(registry.requests.map(({ url }) => url.split("?")[0])).toContain("/token");
    expect(registry.requests.filter(({ url }) => url.startsWith("/token"))).toMatchObject([
      { authorization: undefined },
    ]);
  });

  test("without credentials in the configuration gets those of docker login, from the first file that is there", async () => {
    await using registry = await RegistryDouble.open({ login: { scheme: "token", ...LOGIN } });
    const { name } = await signedIn(registry);
    const folder = scope.use(await temporaryDirectory()).path;
    const [file, second, missing] = ["config.json", "auth.json", "missing.json"].map((each) => join(folder, each));
    if (file === undefined || second === undefined || missing === undefined) throw new Error("no files");
    const auth = Buffer.from(`${LOGIN.username}:${LOGIN.password}`).toString("base64");
    const files = (loginFiles: readonly string[]) => verifier({ loginFiles });
    await writeFile(
      file,
      JSON.stringify({ auths: { "other.test": { auth }, [`https://${registry.host}/v1/`]: { auth } } }),
    );
    await writeFile(second, JSON.stringify({ auths: {} }));
    expect(await (await files([missing, file])).verify(name)).toContain("image-signature:verified");
    await expect((await files([missing, second, file])).verify(name)).rejects.toMatchObject({
      code: "registry-refused",
    });
    await writeFile(file, JSON.stringify({ auths: { [registry.host]: LOGIN } }));
    expect(await (await files([file])).verify(name)).toContain("image-signature:verified");
    await writeFile(file, `{"auths":{"${registry.host}":{"password":"s3cret"`);
    const refused = await (await files([file])).verify(name).catch((error: unknown) => error);
    expect(refused).toMatchObject({ code: "registry-logins", message: expect.not.stringMatching(/s3cret/) });
  });

  test("may hold the signatures of images of another one", async () => {
    await using registry = await RegistryDouble.open();
    await using signatures = await RegistryDouble.open();
    const digest = registry.image(REPOSITORY, randomUUID());
    const name = `${registry.host}/${REPOSITORY}@${digest}`;
    publish(signatures, { repository: "all/signatures", digest, suffix: "sig" }, [await sigstore.signature(digest)]);
    await expect((await verifier()).verify(name)).rejects.toMatchObject({ code: "image-signature" });
    const asked = registry.requests.length;
    const attesting = await verifier({ signatureRepository: `${signatures.host}/all/signatures` });
    expect(await attesting.verify(name)).toContain("image-signature:verified");
    expect(registry.requests.length).toBe(asked);
    const malformed = await verifier({ signatureRepository: "all/../signatures" });
    await expect(malformed.verify(name)).rejects.toMatchObject({ code: "image-name" });
  });

  test("that keeps its blobs elsewhere is followed, and its credentials are not", async () => {
    const seen: (string | undefined)[] = [];
    await using registry = await RegistryDouble.open({ login: { scheme: "token", ...LOGIN } });
    await using storage = await RegistryDouble.open();
    const { name, blob } = await signedIn(registry);
    storage.blob(Buffer.from("not the blob"));
    storage.override = (request, response) => {
      seen.push(request.headers.authorization);
      response.writeHead(401, { "www-authenticate": `Bearer realm="${storage.origin}/token"` }).end();
      return true;
    };
    registry.override = (request, response) => {
      if (request.url !== `/v2/${REPOSITORY}/blobs/${blob}`) return false;
      response.writeHead(307, { location: `${storage.origin}/signed-url?sig=1` }).end();
      return true;
    };
    const registryCredentials = new Map([[registry.host, LOGIN]]);
    const refused = (await verifier({ registryCredentials })).verify(name);
    await expect(refused).rejects.toMatchObject({ message: /status 401/ });
    expect(seen).toEqual([undefined]);
    const body = registry.blobOf(blob);
    storage.override = (request, response) => {
      seen.push(request.headers.authorization);
      response.writeHead(200).end(body);
      return true;
    };
    const selectors = await (await verifier({ registryCredentials })).verify(name);
    expect(selectors).toContain("image-signature:verified");
    expect(seen).toEqual([undefined, undefined]);
  });

  test("may say more about a blob than the blob holds: on the way to a token, and to where it is kept", async () => {
    await using registry = await RegistryDouble.open({ login: { scheme: "token", ...LOGIN } });
    const { name, blob } = await signedIn(registry);
    const body = registry.blobOf(blob);
    const words = "x".repeat(2 * body.length);
    const refused: string[] = [];
    registry.override = (request, response) => {
      const { url = "" } = request;
      if (url === "/elsewhere") response.writeHead(200).end(body);
      else if (!url.endsWith(blob)) return false;
      else if (request.headers.authorization !== undefined && refused.length > 0)
        response.writeHead(307, { location: "/elsewhere" }).end(`<a href="${words}">Temporary Redirect</a>`);
      else {
        refused.push(url);
        const realm = `${registry.origin}/token`;
        response.writeHead(401, { "www-authenticate": `Bearer realm="${realm}",service="registry.test"` }).end(words);
      }
      return true;
    };
    const registryCredentials = new Map([[registry.host, LOGIN]]);
    const selectors = await (await verifier({ registryCredentials })).verify(name);
    expect(selectors).toContain("image-signature:verified");
    expect(refused).toHaveLength(1);
  });

  test("that redirects in circles, or to another host without TLS, is not followed", async () => {
    await using registry = await RegistryDouble.open();
    const { name } = await signedIn(registry);
    for (const [location, message] of [
      ["/v2/again/manifests/x", /redirects in circles/],
      ["http://storage.example:80/x", /without TLS/],
      ["ftp://127.0.0.1/x", /without TLS/],
    ] as const) {
      registry.override = (_request, response) => {
        response.writeHead(302, { location }).end();
        return true;
      };
      const before = registry.requests.length;
      await expect((await verifier()).verify(name)).rejects.toMatchObject({ message });
      expect(registry.requests.length - before).toBeLessThan(10);
    }
  });

  test("elsewhere than on this host is asked over TLS only", async () => {
    let plain = 0;
    const server = createServer((_request, response) => {
      plain += 1;
      response.end();
    });
    server.listen(0, "127.0.0.2");
    await once(server, "listening");
    scope.defer(() => void server.close());
    const { port } = server.address() as AddressInfo;
    const refused = (await verifier()).verify(`127.0.0.2:${port}/app@sha256:${"a".repeat(64)}`);
    await expect(refused).rejects.toMatchObject({ kind: "unavailable", code: "peer-unreachable" });
    expect(plain).toBe(0);
  });

  test.each<[string, (registry: RegistryDouble, held: Held) => void, RegExp]>([
    [
      "sends other bytes than the digest names",
      (registry, { blob }) => registry.corrupt(blob, Buffer.alloc(registry.blobOf(blob).length)),
      /sent other bytes than/,
    ],
    ["sends fewer bytes", (registry, { blob }) => registry.corrupt(blob, Buffer.from("{}")), /sent other bytes than/],
    ["sends more bytes", (registry, { blob }) => registry.corrupt(blob, Buffer.alloc(10_000)), /sent other bytes than/],
    ["sends far more bytes", (registry, { blob }) => registry.corrupt(blob, Buffer.alloc(100_000)), /longer than/],
    ["has no such blob", (registry, { blob }) => registry.corrupt(blob, undefined), /status 404/],
    [
      "sends a manifest without end",
      (registry, { tag }) => answers(registry, tag, Buffer.alloc(5 * 1024 * 1024, " ")),
      /longer than 4194304 bytes/,
    ],
    [
      "sends a manifest that is no JSON",
      (registry, { tag }) => answers(registry, tag, Buffer.from("<html>")),
      /not JSON/,
    ],
    [
      "sends a manifest without layers",
      (registry, { tag }) => answers(registry, tag, Buffer.from('{"layers":7}')),
      /there is none/,
    ],
    ["lists layers without end", (registry, { tag }) => answers(registry, tag, layers(1001, {})), /more than 1000/],
    [
      "names a layer by a path",
      (registry, { tag }) => answers(registry, tag, layers(1, { digest: "sha256:../../secret", size: 1 })),
      /descriptor is malformed/,
    ],
    [
      "names a layer of no size",
      (registry, { tag }) => answers(registry, tag, layers(1, { digest: `sha256:${"a".repeat(64)}`, size: "1" })),
      /descriptor is malformed/,
    ],
    [
      "names a layer that is too large",
      (registry, { tag }) => answers(registry, tag, layers(1, { digest: `sha256:${"a".repeat(64)}`, size: 65_537 })),
      /larger than 65536 bytes/,
    ],
    ["fails", (registry) => answers(registry, "", Buffer.from("no"), 500), /status 500/],
  ])("that %s leaves the image unverified", async (_what, spoil, message) => {
    await using registry = await RegistryDouble.open();
    const held = await signedIn(registry);
    spoil(registry, held);
    await expect((await verifier()).verify(held.name)).rejects.toMatchObject({ message });
  });

  test("that is silent is waited for ten seconds", async () => {
    await using registry = await RegistryDouble.open();
    const clock = new FakeClock();
    const { name } = await signedIn(registry);
    registry.override = () => true;
    const refused = (await verifier({ clock })).verify(name).catch((error: unknown) => error);
    await eventually("a question", () => registry.requests.length > 0);
    await clock.advance(10_000);
    expect(await refused).toMatchObject({ kind: "timeout", message: /timed out/ });
  });
});

function answers(registry: RegistryDouble, tag: string, body: Buffer, status = 200): void {
  registry.override = (request, response) => {
    if (request.url?.endsWith(tag) !== true) return false;
    response.writeHead(status).end(body);
    return true;
  };
}

function layers(count: number, layer: object): Buffer {
  return Buffer.from(JSON.stringify({ layers: Array.from({ length: count }, () => layer) }));
}

describe("what is known of an image", () => {
  test("is asked for once, whoever asks and however often", async () => {
    await using registry = await RegistryDouble.open();
    const { name } = await signedIn(registry);
    const attesting = await verifier();
    await Promise.all(Array.from({ length: 20 }, () => attesting.verify(name)));
    await attesting.verify(name);
    expect(registry.requests).toHaveLength(2);
  });

  test("is asked for again some seconds after it could not be had", async () => {
    await using registry = await RegistryDouble.open();
    const clock = new FakeClock(new Date().toISOString());
    const { name } = await signedIn(registry);
    const attesting = await verifier({ clock });
    answers(registry, "", Buffer.from("no"), 500);
    await expect(attesting.verify(name)).rejects.toMatchObject({ message: /status 500/ });
    registry.override = undefined;
    await expect(attesting.verify(name)).rejects.toMatchObject({ message: /status 500/ });
    expect(registry.requests).toHaveLength(1);
    await clock.advance(5_000);
    expect(await attesting.verify(name)).toContain("image-signature:verified");
  });

  test("waits for a trusted root that can be read", async () => {
    await using registry = await RegistryDouble.open();
    const { name } = await signedIn(registry);
    const log = new RecordingLog();
    const path = join(scope.use(await temporaryDirectory()).path, "root.json");
    const clock = new FakeClock(new Date().toISOString());
    const attesting = await verifier({ trust: { type: "file", path }, log, clock });
    await eventually("a line in the log", () =>
      log.lines.some(({ level, message }) => level === "error" && /trusted root cannot be read/.test(message)),
    );
    await expect(attesting.verify(name)).rejects.toMatchObject({ kind: "unavailable", code: "trusted-root" });
    for (const text of ["{}", "[", JSON.stringify({ ...sigstore.trustedRoot(), certificateAuthorities: [{}] })]) {
      await writeFile(path, text);
      await clock.advance(5_000);
      await expect(attesting.verify(name)).rejects.toMatchObject({ kind: "invalid", code: "trusted-root" });
    }
    await writeFile(path, JSON.stringify(sigstore.trustedRoot()));
    await clock.advance(5_000);
    expect(await attesting.verify(name)).toContain("image-signature:verified");
  });
});

test("logins stand where Docker and Podman leave them, or where the environment says", () => {
  expect(loginFiles({})).toEqual([
    join(homedir(), ".docker/config.json"),
    join(homedir(), ".config/containers/auth.json"),
  ]);
  const env = {
    DOCKER_CONFIG: "/d",
    REGISTRY_AUTH_FILE: "/a.json",
    XDG_RUNTIME_DIR: "/run/user/0",
    XDG_CONFIG_HOME: "/c",
  };
  expect(loginFiles(env)).toEqual([
    ...["/d/config.json", "/a.json", "/run/user/0/containers/auth.json", "/c/containers/auth.json"],
  ]);
});

describe("names of images", () => {
  const digest = `sha256:${"0123456789abcdef".repeat(4)}`;
  test.each([
    ["nginx", "index.docker.io", "library/nginx"],
    ["library/nginx:1.27", "index.docker.io", "library/nginx"],
    ["docker.io/envoyproxy/envoy", "index.docker.io", "envoyproxy/envoy"],
    ["docker-pullable://index.docker.io/nginx", "index.docker.io", "library/nginx"],
    ["localhost/a", "localhost", "a"],
    ["localhost:5000/a/b__c-d.e:v1", "localhost:5000", "a/b__c-d.e"],
    ["registry.test/x", "registry.test", "x"],
    ["[::1]:5000/x", "[::1]:5000", "x"],
  ])("%s", (name, registry, repository) => {
    expect(parseImage(`${name}@${digest}`)).toEqual({ registry, repository, digest });
  });

  test.each([
    ...[
      "nginx:1.27",
      digest,
      `docker://${digest}`,
      `nginx@sha256:${"a".repeat(63)}`,
      `nginx@sha512:${"a".repeat(128)}`,
    ],
    ...[`nginx@${digest.toUpperCase()}`, `a/../b@${digest}`, `a/..%2fb@${digest}`, `registry.test/a?x@${digest}`],
    ...[`user:password@registry.test/a@${digest}`, `registry.test:99999/a@${digest}`, `registry.test/a#b@${digest}`],
    ...[
      `registry.test/@${digest}`,
      `Registry.test/A@${digest}`,
      `a b/c@${digest}`,
      `${"a/".repeat(300)}a@${digest}`,
      "",
    ],
  ])("%s names no image by its digest", (name) => {
    expect(faultOf(() => parseImage(name))).toMatchObject({ kind: "invalid", code: "image-name" });
  });
});
