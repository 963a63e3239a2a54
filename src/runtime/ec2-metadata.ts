import type { HttpCaller } from "./http-call.ts";

const TOKEN_SECONDS = "21600";
/** What answers so to the request for a token has no tokens: version 1 of the service. */
const WITHOUT_TOKENS: ReadonlySet<number> = new Set([403, 404, 405]);

/** Where the metadata service of EC2 is, as AWS's own programs find it. Throws `TypeError` for what is no URL. */
export function ec2MetadataEndpoint(configured: string, env: Readonly<Record<string, string | undefined>>): URL {
  const isV6 = env["AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"]?.toLowerCase() === "ipv6";
  const fallback = isV6 ? "http://[fd00:ec2::254]" : "http://169.254.169.254";
  return new URL(configured || env["AWS_EC2_METADATA_SERVICE_ENDPOINT"] || fallback);
}

/** Version 2 of EC2's instance metadata service; version 1 where there is no other. */
export class Ec2Metadata {
  readonly #http: HttpCaller;
  readonly #endpoint: URL;

  constructor(http: HttpCaller, endpoint: URL) {
    this.#http = http;
    this.#endpoint = endpoint;
  }

  /** A session of its own, for the few reads that belong together. Throws `unavailable`. */
  async open(signal: AbortSignal): Promise<(path: string) => Promise<string>> {
    const asked = { "x-aws-ec2-metadata-token-ttl-seconds": TOKEN_SECONDS };
    const token = await this.#call("api/token", { method: "PUT", headers: asked }, signal);
    if (token.status !== 200 && !WITHOUT_TOKENS.has(token.status))
      throw this.#http.fault(`the metadata service answered the request for a token with status ${token.status}`);
    const headers: Readonly<Record<string, string>> =
      token.status === 200 ? { "x-aws-ec2-metadata-token": token.body.toString("latin1").trim() } : {};
    return async (path) => {
      const { status, body } = await this.#call(path, { method: "GET", headers }, signal);
      if (status !== 200) throw this.#http.fault(`the metadata service answered ${path} with status ${status}`);
      return body.toString("utf8");
    };
  }

  #call(
    path: string,
    how: { readonly method: "GET" | "PUT"; readonly headers: Readonly<Record<string, string>> },
    signal: AbortSignal,
  ) {
    const base = this.#endpoint.pathname.replace(/\/$/, "");
    return this.#http.call({ url: new URL(`${base}/latest/${path}`, this.#endpoint), ...how }, signal);
  }
}
