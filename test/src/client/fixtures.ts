import type { X509SVID } from "../../../src/rpc/gen/X509SVID.ts";
import type { X509SVIDResponse } from "../../../src/rpc/gen/X509SVIDResponse.ts";
import { createCa, type Issued, type TestCa } from "../../support/pki.ts";

export interface World {
  /** Trust domain example.org: root, intermediate and a leaf `/web` below both. */
  readonly rootA: TestCa;
  readonly intA: TestCa;
  readonly leafA: Issued;
  /** Trust domain partner.test. */
  readonly rootB: TestCa;
  readonly leafB: Issued;
}

export async function makeWorld(): Promise<World> {
  const rootA = await createCa({ trustDomain: "example.org" });
  const rootB = await createCa({ trustDomain: "partner.test" });
  const intA = await rootA.intermediate();
  return { rootA, intA, rootB, leafA: await intA.issue(), leafB: await rootB.issue() };
}

/** One part of a message, sound unless changed. */
export function svidPart(world: World, issued: Issued, change: Partial<X509SVID> = {}): X509SVID {
  return {
    spiffe_id: issued.certificate.uris[0] ?? "",
    x509_svid: Buffer.concat(issued.chain),
    x509_svid_key: issued.privateKey,
    bundle: world.rootA.der,
    hint: "",
    ...change,
  };
}

/** A message of FetchX509SVID with `/web` alone, sound unless changed. */
export function svidMessage(world: World, change: X509SVIDResponse = {}): X509SVIDResponse {
  return { svids: [svidPart(world, world.leafA)], federated_bundles: {}, ...change };
}
