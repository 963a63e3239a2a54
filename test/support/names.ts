/**
 * Loaded into a program before all else, by `--import`: stands for the name service of its machine. The names and their
 * addresses are in `STEEPLE_TEST_NAMES`, JSON; other names are looked up as ever.
 */
import dns from "node:dns";

const names = JSON.parse(process.env["STEEPLE_TEST_NAMES"] ?? "{}") as Readonly<Record<string, readonly string[]>>;
const { lookup } = dns.promises;

dns.promises.lookup = (async (name: string, options: dns.LookupAllOptions) =>
  names[name]?.map((address) => ({ address, family: 4 })) ?? lookup(name, options)) as typeof lookup;

/** Environment of a program for which the name has these addresses. */
export function knowing(name: string, addresses: readonly string[]): Readonly<Record<string, string>> {
  return {
    NODE_OPTIONS: `--import ${import.meta.url}`,
    STEEPLE_TEST_NAMES: JSON.stringify({ [name]: addresses }),
  };
}
