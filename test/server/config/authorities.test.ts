import { describe, expect, test } from "vitest";
import { load, refused, server } from "./support.ts";

describe("key managers and upstream authorities", () => {
  const plugin = (type: string, name: string, data: string): string =>
    `${server("")}plugins {\n ${type} "${name}" { plugin_data { ${data} } }\n}\n`;

  test("a PKCS#11 token", async () => {
    const data = 'module_path = "/m.so" token_label = "ca" pin_path = "/pin"';
    expect((await load(plugin("KeyManager", "pkcs11", data))).keyManager).toEqual({
      ...{ type: "pkcs11", module: "/m.so", tokenLabel: "ca", pinPath: "/pin", keyPrefix: "steeple/" },
    });
    expect(await refused(plugin("KeyManager", "pkcs11", 'module_path = "/m.so"'))).toContain("token_label is required");
  });

  test("a CA in files", async () => {
    const data = 'cert_file_path = "/c.pem" key_file_path = "/k.pem" bundle_file_path = "/b.pem"';
    expect((await load(plugin("UpstreamAuthority", "disk", data))).upstreamAuthority).toEqual({
      ...{ type: "disk", certPath: "/c.pem", keyPath: "/k.pem", bundlePath: "/b.pem" },
    });
    expect(await refused(plugin("UpstreamAuthority", "disk", 'key_file_path = "/k.pem"'))).toContain(
      "'cert_file_path' and 'key_file_path' must be set and not empty",
    );
  });

  test("HashiCorp Vault as both, with what the environment says", async () => {
    const base = 'vault_addr = "https://v.test:8200" approle_auth { approle_id = "r" }';
    const env = { VAULT_APPROLE_SECRET_ID: "s", VAULT_NAMESPACE: "n" };
    const vault = {
      ...{ address: "https://v.test:8200", namespace: "n", insecureSkipVerify: false },
      auth: { method: "approle", mount: "approle", roleId: "r", secretId: "s" },
    };
    const transit = await load(plugin("KeyManager", "hashicorp_vault", `${base} key_identifier_value = "one"`), {
      env,
    });
    expect(transit.keyManager).toEqual({
      ...{ type: "hashicorp_vault", vault, mount: "transit", identifier: { value: "one" } },
    });
    const pki = await load(plugin("UpstreamAuthority", "vault", `${base} pki_mount_point = "p"`), { env });
    expect(pki.upstreamAuthority).toEqual({ type: "vault", vault, mount: "p" });
  });

  test.each([
    { data: 'token_auth { token = "t" }', message: "vault_addr is required, as a URL" },
    { data: 'vault_addr = "http://v" token_auth { token = "t" }', message: "one of 'key_identifier_file'" },
    {
      data: 'vault_addr = "http://v" key_identifier_value = "x" token_auth {} k8s_auth {}',
      message: "exactly one of token_auth, cert_auth, approle_auth and k8s_auth",
    },
    {
      data: 'vault_addr = "http://v" key_identifier_value = "x" k8s_auth {}',
      message: "k8s_auth_role_name is required",
    },
    { data: 'vault_addr = "http://v" key_identifier_value = "x" token_auth {}', message: "token is required" },
  ])("Vault with $data is refused", async ({ data, message }) => {
    expect(await refused(plugin("KeyManager", "hashicorp_vault", data))).toContain(message);
  });

  test("a server above", async () => {
    const data = 'server_address = "up.test" server_port = "8081" workload_api_socket = "/w.sock"';
    expect((await load(plugin("UpstreamAuthority", "spire", data))).upstreamAuthority).toEqual({
      ...{ type: "spire", address: "up.test", port: 8081, workloadApiSocket: "/w.sock" },
    });
    const wrong = await refused(plugin("UpstreamAuthority", "spire", 'server_address = "u" server_port = "http"'));
    expect(wrong).toContain('server_port "http" is not a port');
  });
});

describe("lifetimes that the CA's can't guarantee are warned of, in SPIRE's words", () => {
  test.each([
    { lines: 'default_x509_svid_ttl = "4h"', warning: undefined },
    {
      lines: 'default_x509_svid_ttl = "5h"',
      warning:
        "default_x509_svid_ttl is too high for the configured ca_ttl value. SVIDs with shorter lifetimes may be issued. Please set default_x509_svid_ttl to 4h or less, or the ca_ttl to 30h or more, to guarantee the full default_x509_svid_ttl lifetime when CA rotations are scheduled.",
    },
    {
      lines: 'ca_ttl = "900h"\n agent_ttl = "200h"',
      warning:
        "agent_ttl is too high and the ca_ttl is too low. SVIDs with shorter lifetimes may be issued. Please set agent_ttl to 168h or less, and the ca_ttl to 1008h or more, to guarantee the full agent_ttl lifetime when CA rotations are scheduled.",
    },
    {
      lines: 'ca_ttl = "2000h"\n default_jwt_svid_ttl = "200h"',
      warning:
        "default_jwt_svid_ttl is too high. SVIDs with shorter lifetimes may be issued. Please set default_jwt_svid_ttl to 168h or less to guarantee the full default_jwt_svid_ttl lifetime when CA rotations are scheduled.",
    },
  ])("$lines", async ({ lines, warning }) => {
    const { warnings } = await load(server(lines));
    expect(warnings.map((one) => one.replace(/^.*?: /, ""))).toEqual(warning === undefined ? [] : [warning]);
  });

  test("those that no authority could ever give are refused, with the arithmetic", async () => {
    expect(await refused(server('ca_ttl = "6h"\n default_x509_svid_ttl = "8h"\n agent_ttl = "7h"'))).toBe(
      [
        "2 faults in the configuration:",
        "  :5:2: default_x509_svid_ttl (8h) is longer than ca_ttl (6h), so that no SVID could live as long as asked. An authority signs until 5/6 of its life and then still has ca_ttl/6 = 1h: set default_x509_svid_ttl to 1h or less, or ca_ttl to 6 * 8h = 48h or more",
        "  :6:2: agent_ttl (7h) is longer than ca_ttl (6h), so that no SVID could live as long as asked. An authority signs until 5/6 of its life and then still has ca_ttl/6 = 1h: set agent_ttl to 1h or less, or ca_ttl to 6 * 7h = 42h or more",
      ].join("\n"),
    );
  });

  test("a ca_ttl so short that an authority would sign before agents know it is refused, with the arithmetic", async () => {
    expect(await refused(server('ca_ttl = "17s"'))).toBe(
      ":4:2: ca_ttl (17s) is too short for authorities to change without an outage. The next one is published after ca_ttl/2 = 8.5s and signs after ca_ttl*5/6 = 14.2s: 5.7s later, and agents take up to 6s to learn of it. Set ca_ttl to 3 * 6s = 18s or more",
    );
    expect((await load(server('ca_ttl = "18s"'))).caTtlSeconds).toBe(18);
  });

  test("a default that a short ca_ttl can't give is warned of only", async () => {
    const { warnings } = await load(server('ca_ttl = "30m"'));
    expect(warnings).toEqual([expect.stringContaining("default_x509_svid_ttl is too high")]);
  });

  test("an empty ca_subject is warned of too", async () => {
    const { warnings, caSubject } = await load(server('ca_subject { common_name = "" }'));
    expect(warnings).toEqual([
      expect.stringContaining("ca_subject configurable is set but empty; the default will be used"),
    ]);
    expect(caSubject).toEqual({});
  });
});

describe("tokens", () => {
  test("JWT-SVIDs can be turned off", async () => {
    expect(await load(server("disable_jwt_svids = true"))).toMatchObject({ jwtKeyType: undefined, warnings: [] });
  });

  test("WIT-SVIDs are turned on by SPIRE's feature flag, with the CA's key type, and a warning", async () => {
    const config = await load(server('ca_key_type = "ec-p384"\nexperimental { feature_flags = ["wit-svid"] }'));
    expect(config).toMatchObject({ witKeyType: "ec-p384" });
    expect(config.warnings).toEqual([expect.stringContaining('Developer feature flag "wit-svid" has been enabled')]);
  });

  test("an unknown feature flag is refused", async () => {
    const message = await refused(server('experimental { feature_flags = ["wit-svids"] }'));
    expect(message).toContain("unknown feature flag(s): [wit-svids]");
  });

  test("WIT-26 an issuer that looks like an OpenID provider's is warned of", async () => {
    const { warnings } = await load(server('experimental { wit_issuer = "https://idp.example.org" }'));
    expect(warnings).toEqual([expect.stringContaining("should not be that of an OpenID provider")]);
  });
});
