import { readFile } from "node:fs/promises";
import * as v from "valibot";
import { parseJws } from "../../../src/crypto/jws.ts";
import type { AzureCloud } from "../../../src/evidence/azure-cloud.ts";
import { azureMetadata, azureMetadataEndpoint } from "../../../src/runtime/azure-metadata.ts";
import type { Clock } from "../../../src/runtime/clock.ts";
import { Fault, messageOf } from "../../../src/runtime/fault.ts";
import type { HttpCaller } from "../../../src/runtime/http-call.ts";
import { HeldAccessToken } from "../access-token.ts";

/** How the server shows who it is in a tenant. */
export type AzureAuth =
  | { readonly kind: "secret"; readonly appId: string; readonly appSecret: string }
  | { readonly kind: "token"; readonly appId: string; readonly tokenPath: string }
  /** As Azure's programs find their own. */
  | { readonly kind: "default" };

export interface AzureParts {
  readonly http: HttpCaller;
  /** Without proxies: for the metadata service. */
  readonly local: HttpCaller;
  readonly clock: Clock;
  readonly cloud: AzureCloud;
  /** `AZURE_…`. */
  readonly env: Readonly<Record<string, string | undefined>>;
}

const NEVER = new AbortController().signal;
const seconds = v.pipe(v.union([v.number(), v.pipe(v.string(), v.regex(/^\d+$/))]), v.transform(Number));
const Token = v.object({ access_token: v.pipe(v.string(), v.minLength(1)), expires_in: seconds });

/** An access token for managing resources, as one principal of one tenant; kept while it lasts. */
export class AzureCredentials {
  readonly #parts: AzureParts;
  readonly #auth: AzureAuth;
  readonly #tenantId: () => Promise<string>;
  readonly #held: HeldAccessToken;

  constructor(parts: AzureParts, auth: AzureAuth, tenantId: () => Promise<string>) {
    this.#parts = parts;
    this.#auth = auth;
    this.#tenantId = tenantId;
    this.#held = new HeldAccessToken(parts.clock, () => this.#take());
  }

  /** Throws `unavailable`. */
  token(): Promise<string> {
    return this.#held.get();
  }

  #take(): Promise<v.InferOutput<typeof Token>> {
    const { env, local, cloud } = this.#parts;
    const auth = this.#auth.kind === "default" ? authOf(env) : this.#auth;
    if (auth.kind === "secret") return this.#byClient(auth.appId, { client_secret: auth.appSecret });
    if (auth.kind === "token") return this.#byAssertion(auth.appId, auth.tokenPath);
    const clientId = env["AZURE_CLIENT_ID"] ?? "";
    const which: Readonly<Record<string, string>> = clientId === "" ? {} : { client_id: clientId };
    const query = { "api-version": "2018-02-01", resource: `${cloud.management}/`, ...which };
    const path = "identity/oauth2/token";
    return azureMetadata(local, azureMetadataEndpoint(env), { schema: Token, path, query, signal: NEVER });
  }

  async #byAssertion(appId: string, tokenPath: string): Promise<v.InferOutput<typeof Token>> {
    let assertion: string;
    try {
      assertion = (await readFile(tokenPath, "utf8")).trim();
      parseJws(assertion);
    } catch (error) {
      throw new Fault("unavailable", `unable to use token file ${JSON.stringify(tokenPath)}: ${messageOf(error)}`, {
        code: "azure-credentials",
        hint: "see token_path of the tenant",
      });
    }
    const type = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
    return this.#byClient(appId, { client_assertion_type: type, client_assertion: assertion });
  }

  async #byClient(clientId: string, proof: Readonly<Record<string, string>>): Promise<v.InferOutput<typeof Token>> {
    const { http, cloud } = this.#parts;
    const url = new URL(`/${await this.#tenantId()}/oauth2/v2.0/token`, cloud.authority);
    const scope = `${cloud.management}/.default`;
    const form = { grant_type: "client_credentials", client_id: clientId, scope, ...proof };
    const headers = { "content-type": "application/x-www-form-urlencoded" };
    return http.json(Token, { url, method: "POST", headers, body: new URLSearchParams(form).toString() }, NEVER);
  }
}

function authOf(env: AzureParts["env"]): AzureAuth {
  const { AZURE_CLIENT_ID: appId, AZURE_CLIENT_SECRET: appSecret, AZURE_FEDERATED_TOKEN_FILE: tokenPath } = env;
  if (appId && appSecret) return { kind: "secret", appId, appSecret };
  if (appId && tokenPath) return { kind: "token", appId, tokenPath };
  return { kind: "default" };
}
