/**
 * Loaded into a program before all else, by `--import`: stands for the name service of its machine. The names and their
 * addresses are in `STEEPLE_TEST_NAMES`, JSON; other names are looked up as ever.
 */
import dns from "node:dns";

const VARIABLE = "STEEPLE_TEST_NAMES";
const { lookup } = dns.promises;

function addressesOf(name: string): readonly string[] | undefined {
  return (JSON.parse(process.env[VARIABLE] ?? "{}") as Readonly<Record<string, readonly string[]>>)[name];
}

dns.promises.lookup = (async (name: string, options: dns.LookupAllOptions) =>
  addressesOf(name)?.map((address) => ({ address, family: 4 })) ?? lookup(name, options)) as typeof lookup;

/** Environment of a program for which the name has these addresses. */
export function knowing(name: string, addresses: readonly string[]): Readonly<Record<string, string>> {
  return {
    NODE_OPTIONS: `--import ${import.meta.url}`,
    [VARIABLE]: JSON.stringify({ [name]: addresses }),
  };
}
