/** What binds a token, and an attestation that counts once, to the agent's key; and which serials were replaced. */
export const SCHEMA_V2 = `
alter table join_tokens add column key_hash text collate "C" not null default '';
alter table attested_nodes add column key_hash text collate "C" not null default '';
alter table attested_nodes add column superseded text[] not null default '{}';
`;
