import { WorkloadApi } from "../rpc/protos.ts";
import { type EndpointOptions, type FetchOptions, firstOf, overChannel } from "./endpoint.ts";
import { type WatchOptions, watch } from "./watch.ts";
import { readX509Bundles, readX509Context, type X509Bundles, type X509Context } from "./x509-context.ts";

export interface WatchEndpointOptions extends EndpointOptions, WatchOptions {}

/**
 * All identities, keys and bundles of this process, now and after each change; reconnects by itself. Throws when the
 * address is wrong or the endpoint refuses for good. While the endpoint has no identity for the process nothing is
 * yielded and `onError` gets `denied`: what was yielded before is then to be let go.
 */
export function watchX509Svids(options: WatchEndpointOptions): AsyncGenerator<X509Context, void, undefined> {
  return watch(svidStream(options), readX509Context, options);
}

/** The bundles that this process may verify with, now and after each change. As `watchX509Svids`. */
export function watchX509Bundles(options: WatchEndpointOptions): AsyncGenerator<X509Bundles, void, undefined> {
  return watch(bundleStream(options), readX509Bundles, options);
}

/** One attempt at what `watchX509Svids` yields first. Throws a `Fault` with what the endpoint answered. */
export async function fetchX509Svid(options: FetchOptions = {}): Promise<X509Context> {
  return readX509Context(await firstOf(svidStream(options), options));
}

/** One attempt at what `watchX509Bundles` yields first. */
export async function fetchX509Bundles(options: FetchOptions = {}): Promise<X509Bundles> {
  return readX509Bundles(await firstOf(bundleStream(options), options));
}

function svidStream(options: FetchOptions) {
  return overChannel(options, (channel, call) => channel.client(WorkloadApi).FetchX509SVID({}, call));
}

function bundleStream(options: FetchOptions) {
  return overChannel(options, (channel, call) => channel.client(WorkloadApi).FetchX509Bundles({}, call));
}
