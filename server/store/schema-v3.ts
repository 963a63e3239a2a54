/** Agents in quarantine: since when, and why. */
export const SCHEMA_V3 = `
alter table attested_nodes add column quarantined_at timestamptz;
alter table attested_nodes add column quarantine_reason text collate "C" not null default '';
`;
