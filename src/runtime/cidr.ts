import { BlockList, isIP } from "node:net";
import { Fault } from "./fault.ts";

/** A network such as `10.0.0.0/8`, as it was written. Throws `invalid`. */
export function parseCidr(text: string): string {
  const { prefix, family } = partsOf(text);
  const longest = family === 4 ? 32 : 128;
  if (family === 0 || !/^\d{1,3}$/.test(prefix) || Number(prefix) > longest) {
    throw new Fault("invalid", `${JSON.stringify(text)} is not a network such as 10.0.0.0/8`, { code: "cidr" });
  }
  return text;
}

/** Tells whether an address is in one of the networks. */
export function networksOf(cidrs: readonly string[]): (address: string) => boolean {
  const list = new BlockList();
  for (const cidr of cidrs) {
    const { address, prefix, family } = partsOf(cidr);
    list.addSubnet(address, Number(prefix), family === 4 ? "ipv4" : "ipv6");
  }
  return (address) => {
    const family = isIP(address);
    return family !== 0 && list.check(address, family === 4 ? "ipv4" : "ipv6");
  };
}

function partsOf(cidr: string): { readonly address: string; readonly prefix: string; readonly family: number } {
  const slash = cidr.lastIndexOf("/");
  const address = cidr.slice(0, Math.max(0, slash));
  return { address, prefix: cidr.slice(slash + 1), family: isIP(address) };
}
