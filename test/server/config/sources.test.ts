import { spawnSync } from "node:child_process";
import { mkdir, writeFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { loadServerConfig, type ServerFlags } from "../../../server/config.ts";
import { faultOf, refusal } from "../../support/faults.ts";
import { DEFAULTS, folder, load, server } from "./support.ts";

describe("without a file", () => {
  test("defaults are sound: example.org, the embedded store, keys on disk, join tokens", () => {
    expect(loadServerConfig({ env: { STEEPLE_DATA_DIR: "/state" } })).toEqual({
      ...DEFAULTS,
      trustDomain: "example.org",
      dataDir: "/state/server",
      dataStore: { kind: "embedded", directory: "/state/server/store" },
      keyManager: { type: "disk", keysPath: "/state/server/keys.json" },
    });
  });

  test("state goes where the system wants it", () => {
    const expected =
      process.geteuid?.() === 0 ? "/var/lib/steeple/server" : join(homedir(), ".local/state/steeple/server");
    expect(loadServerConfig({ env: {} }).dataDir).toBe(expected);
  });

  test("SPIRE's path in the current directory is taken when it's there", async () => {
    await mkdir(join(folder, "conf", "server"), { recursive: true });
    await writeFile(join(folder, "conf", "server", "server.conf"), server(""));
    const script = `
      import { loadServerConfig } from ${JSON.stringify(new URL("../../../server/config.ts", import.meta.url).href)};
      console.log(loadServerConfig({ env: {} }).trustDomain);`;
    const { stdout } = spawnSync(process.execPath, ["--input-type=module", "-e", script], { cwd: folder });
    expect(stdout.toString()).toBe("a.test\n");
  });

  test("a file that was asked for must be there", () => {
    const fault = faultOf(() => loadServerConfig({ path: "/nowhere.conf" }));
    expect(fault).toMatchObject(refusal("not_found", "config-not-found"));
    expect(fault.message).toBe("could not find config file /nowhere.conf: please use the -config flag");
  });
});

describe("flags go before the file", () => {
  test("each of them", async () => {
    const flags: ServerFlags = {
      bindAddress: "10.0.0.1",
      serverPort: 9000,
      dataDir: "/other",
      socketPath: "/o.sock",
      trustDomain: "b.test",
      logFile: "/o.log",
      logFormat: "text",
      logLevel: "debug",
      logSourceLocation: true,
    };
    expect(await load(`${server("bind_port = 1")}`, { flags })).toMatchObject({
      bindAddress: "10.0.0.1",
      bindPort: 9000,
      dataDir: "/other",
      socketPath: "/o.sock",
      trustDomain: "b.test",
      log: { level: "debug", format: "text", file: "/o.log", sourceLocation: true },
      dataStore: { kind: "embedded", directory: "/other/store" },
    });
  });

  test("empty ones count as not given, as in SPIRE", async () => {
    const flags = { bindAddress: "", serverPort: 0, trustDomain: "", logSourceLocation: false };
    expect(await load(server("bind_port = 8085\nlog_source_location = true"), { flags })).toMatchObject({
      bindAddress: "0.0.0.0",
      bindPort: 8085,
      trustDomain: "a.test",
      log: { sourceLocation: true },
    });
  });

  test("they can stand in for the file", () => {
    expect(loadServerConfig({ flags: { trustDomain: "b.test", dataDir: "/d" }, env: {} })).toMatchObject({
      trustDomain: "b.test",
      dataDir: "/d",
    });
  });

  test("a wrong one is named", () => {
    const fault = faultOf(() => loadServerConfig({ flags: { logLevel: "loud", trustDomain: "B" }, env: {} }));
    expect(fault.message).toContain("-logLevel: server.log_level: not a valid log level");
    expect(fault.message).toContain(
      '-trustDomain: server.trust_domain: could not parse trust_domain "B": trust domain characters',
    );
  });
});

describe("environment variables", () => {
  test("are expanded when asked, and those that are not set are told", async () => {
    const text = server('jwt_issuer = "$ISSUER"\n ca_ttl = "${TTL}"\n log_level = "$$x$NONE"').replace("$$x", "");
    const { jwtIssuer, caTtlSeconds, warnings } = await load(text, {
      env: { ISSUER: "i", TTL: "48h" },
      expandEnv: true,
    });
    expect({ jwtIssuer, caTtlSeconds }).toEqual({ jwtIssuer: "i", caTtlSeconds: 172_800 });
    expect(warnings).toEqual([expect.stringContaining("environment variable NONE is not set")]);
  });

  test("and stay as they are otherwise", async () => {
    expect((await load(server('jwt_issuer = "$ISSUER"'), { env: { ISSUER: "i" } })).jwtIssuer).toBe("$ISSUER");
  });
});
