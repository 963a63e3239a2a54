/** What one server at a time may do, by name, and until when it is the one. */
export const SCHEMA_V4 = `
create table leases (
  name text collate "C" constraint leases_pkey primary key,
  holder text collate "C" not null,
  ends_at timestamptz not null
);
`;
