import { BlockList, isIP } from "node:net";

/** Whether the address text names these 4 or 16 octets; IPv4 inside IPv6 counts as the IPv4 address. */
export function addressesEqual(octets: Uint8Array, text: string): boolean {
  const family = octets.length === 4 ? "ipv4" : "ipv6";
  const list = new BlockList();
  list.addAddress(printed(octets), family);
  const kind = isIP(text);
  return kind !== 0 && list.check(text, kind === 4 ? "ipv4" : "ipv6");
}

function printed(octets: Uint8Array): string {
  if (octets.length === 4) return octets.join(".");
  return (Buffer.from(octets).toString("hex").match(/.{4}/g) ?? []).join(":");
}
