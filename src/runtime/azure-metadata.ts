import type * as v from "valibot";
import type { HttpCaller } from "./http-call.ts";

type Env = Readonly<Record<string, string | undefined>>;

/** Where the metadata service of Azure is. Throws `TypeError` for what is no URL. */
export function azureMetadataEndpoint(env: Env): URL {
  return new URL(env["AZURE_POD_IDENTITY_AUTHORITY_HOST"] || "http://169.254.169.254");
}

/** JSON of the instance metadata service at the path, below `/metadata/`. Throws `unavailable`. */
export function azureMetadata<S extends v.GenericSchema>(
  http: HttpCaller,
  endpoint: URL,
  { schema, path, query, signal }: MetadataQuestion<S>,
): Promise<v.InferOutput<S>> {
  const url = new URL(`/metadata/${path}`, endpoint);
  url.search = new URLSearchParams(query).toString();
  return http.json(schema, { url, headers: { metadata: "true" } }, signal);
}

interface MetadataQuestion<S> {
  readonly schema: S;
  readonly path: string;
  readonly query: Readonly<Record<string, string>>;
  readonly signal: AbortSignal;
}
