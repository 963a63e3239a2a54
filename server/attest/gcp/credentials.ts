import { createPrivateKey } from "node:crypto";
import { readFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import * as v from "valibot";
import { jwsSignerOf, signJws } from "../../../src/crypto/jws.ts";
import type { Clock } from "../../../src/runtime/clock.ts";
import { Fault, messageOf } from "../../../src/runtime/fault.ts";
import type { HttpCaller } from "../../../src/runtime/http-call.ts";
import { HeldAccessToken } from "../access-token.ts";

export interface GoogleCredentialsOptions {
  readonly serviceAccountFile: string | undefined;
  /** `GOOGLE_APPLICATION_CREDENTIALS`, `CLOUDSDK_CONFIG`, `GCE_METADATA_HOST` and `HOME`. */
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly http: HttpCaller;
  /** Without proxies: for the metadata service. */
  readonly local: HttpCaller;
  readonly clock: Clock;
}

const SCOPE = "https://www.googleapis.com/auth/compute.readonly";
const HOUR_S = 3600;
const NEVER = new AbortController().signal;

const Token = v.object({ access_token: v.pipe(v.string(), v.minLength(1)), expires_in: v.optional(v.number(), 0) });

const ServiceAccount = v.object({
  type: v.literal("service_account"),
  client_email: v.string(),
  private_key: v.string(),
  private_key_id: v.optional(v.string(), ""),
  token_uri: v.optional(v.string(), "https://oauth2.googleapis.com/token"),
});
const AuthorizedUser = v.object({
  type: v.literal("authorized_user"),
  client_id: v.string(),
  client_secret: v.string(),
  refresh_token: v.string(),
});

/** An access token for Compute Engine: by the file of the configuration, or as Google's programs find their own. */
export class GoogleCredentials {
  readonly #options: GoogleCredentialsOptions;
  readonly #held: HeldAccessToken;

  constructor(options: GoogleCredentialsOptions) {
    this.#options = options;
    this.#held = new HeldAccessToken(options.clock, () => this.#take());
  }

  /** Throws `unavailable`. */
  token(): Promise<string> {
    return this.#held.get();
  }

  async #take(): Promise<v.InferOutput<typeof Token>> {
    const { serviceAccountFile, env, local } = this.#options;
    if (serviceAccountFile !== undefined) return this.#byAccount(await readJson(ServiceAccount, serviceAccountFile));
    const named = env["GOOGLE_APPLICATION_CREDENTIALS"] ?? "";
    const folder = env["CLOUDSDK_CONFIG"] || join(env["HOME"] || homedir(), ".config", "gcloud");
    const wellKnown = join(folder, "application_default_credentials.json");
    const file = named !== "" ? named : (await exists(wellKnown)) ? wellKnown : undefined;
    if (file !== undefined) {
      const found = await readJson(v.variant("type", [ServiceAccount, AuthorizedUser]), file);
      return found.type === "service_account" ? this.#byAccount(found) : this.#byUser(found);
    }
    const host = env["GCE_METADATA_HOST"] || "metadata.google.internal";
    const url = new URL(`http://${host}/computeMetadata/v1/instance/service-accounts/default/token`);
    return local.json(Token, { url, headers: { "metadata-flavor": "Google" } }, NEVER);
  }

  /** RFC 7523, section 2.1. */
  async #byAccount(account: v.InferOutput<typeof ServiceAccount>): Promise<v.InferOutput<typeof Token>> {
    const { client_email: iss, private_key, private_key_id: kid, token_uri: aud } = account;
    if (!aud.startsWith("https://")) throw nowhere("token_uri is not https");
    const iat = Math.floor(this.#options.clock.now().getTime() / 1000);
    const claims = { iss, scope: SCOPE, aud, iat, exp: iat + HOUR_S };
    let assertion: string;
    try {
      const signer = jwsSignerOf("RS256", createPrivateKey(private_key));
      assertion = await signJws({ alg: "RS256", typ: "JWT", kid }, claims, signer);
    } catch (error) {
      throw nowhere("the private key of the service account cannot be used", error);
    }
    return this.#post(aud, { grant_type: "urn:ietf:params:oauth:grant-type:jwt-bearer", assertion });
  }

  #byUser({ type: _, ...user }: v.InferOutput<typeof AuthorizedUser>): Promise<v.InferOutput<typeof Token>> {
    return this.#post("https://oauth2.googleapis.com/token", { grant_type: "refresh_token", ...user });
  }

  #post(url: string, form: Readonly<Record<string, string>>): Promise<v.InferOutput<typeof Token>> {
    const headers = { "content-type": "application/x-www-form-urlencoded" };
    const call = { url: new URL(url), method: "POST", headers, body: new URLSearchParams(form).toString() } as const;
    return this.#options.http.json(Token, call, NEVER);
  }
}

async function exists(path: string): Promise<boolean> {
  return readFile(path).then(
    () => true,
    () => false,
  );
}

async function readJson<S extends v.GenericSchema>(schema: S, path: string): Promise<v.InferOutput<S>> {
  try {
    return v.parse(schema, JSON.parse(await readFile(path, "utf8")));
  } catch (error) {
    const isForm = error instanceof v.ValiError || error instanceof SyntaxError;
    throw nowhere(`${path}: ${isForm ? "not a file of credentials that can be used" : messageOf(error)}`);
  }
}

function nowhere(reason: string, cause?: unknown): Fault {
  return new Fault("unavailable", `the server has no credentials of Google: ${reason}`, {
    code: "gcp-credentials",
    hint: "set service_account_file, or run the server under a service account",
    cause,
  });
}
