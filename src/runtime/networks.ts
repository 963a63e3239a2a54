import { BlockList, isIP } from "node:net";
import { Fault } from "./fault.ts";

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

/** Networks that are no place on the internet: of a machine, a site, a link, a protocol. RFC 6890 and its registry. */
const SPECIAL = [
  ...["0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"],
  ...["192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"],
  ...["203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"],
  ...["::/128", "::1/128", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16"],
  ...["3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"],
];

/** Throws `invalid` for what is no network such as `10.0.0.0/8`. */
export function networkList(networks: readonly string[]): BlockList {
  const list = new BlockList();
  for (const network of networks) {
    const [address = "", prefix = ""] = network.split("/");
    const kind = isIP(address);
    const most = kind === 4 ? 32 : 128;
    if (kind === 0 || !/^\d{1,3}$/.test(prefix) || Number(prefix) > most) {
      throw new Fault("invalid", `${JSON.stringify(network)} is not a network such as 10.0.0.0/8`, {
        code: "network-format",
      });
    }
    list.addSubnet(address, Number(prefix), kind === 4 ? "ipv4" : "ipv6");
  }
  return list;
}

const special = networkList(SPECIAL);

/** On the internet, or in one of the networks; IPv4 inside IPv6 counts as the IPv4 address. */
export function isReachable(address: string, allowed: BlockList): boolean {
  const kind = isIP(address);
  if (kind === 0) return false;
  const family = kind === 4 ? "ipv4" : "ipv6";
  return allowed.check(address, family) || !special.check(address, family);
}
