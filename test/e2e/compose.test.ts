import { expect, test } from "vitest";
import { ComposeProject, withoutNamespaces } from "../support/compose.ts";
import { eventually } from "../support/eventually.ts";
import { findPostgres } from "../support/postgres.ts";
import { withoutSwtpm } from "../support/swtpm.ts";

const postgres = await findPostgres();

test.skipIf(postgres === undefined || withoutSwtpm || withoutNamespaces)(
  "docker-compose.yml comes up, and both agents' workloads have their identities",
  async () => {
    await using project = await ComposeProject.open(postgres ?? "");
    for (const [service, id] of [
      ["workload", "spiffe://example.org/workload"],
      ["measured-workload", "spiffe://example.org/measured-workload"],
    ] as const) {
      await project.up(service);
      await eventually(`${service} has its identity`, () => project.output(service).includes(`${id}\n`), 60_000);
    }
    expect(await project.exec("server", ["steeple-server", "agent", "list"])).toContain("Found 2 attested agents");
  },
  400_000,
);
