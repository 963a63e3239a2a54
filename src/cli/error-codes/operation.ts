/** Of configuring, running and asking the programs. `code | cause | fix`, by code. */
export const OPERATION_CODES = `
agent-banned | The agent is banned. | Evict it with agent evict, then let it attest again.
agent-data-damaged | The agent's data file cannot be read. | Remove the file; the agent attests again.
agent-expired | The agent's SVID has expired. | The agent attests again by itself if its attestation method allows it; otherwise give it a new join token.
agent-must-reattest | The server asks the agent to attest again. | Nothing: a re-attestable agent does so by itself.
agent-not-active | The agent shows an SVID that is not its newest. | Make sure that no two agents use a copy of the same data folder.
agent-not-attested | The server does not know the agent, or the agent has no SVID yet. | Attest it: a join token, or the attestor that both sides are configured with.
agent-not-found | No agent with this SPIFFE ID has attested. | agent list shows those that have.
agent-not-ready | The agent has not received its entries from the server yet. | Try again; if it stays so, see the agent's log for the connection to the server.
agent-not-quarantined | The agent is not in quarantine. | Nothing: agent list -quarantined true shows those that are.
agent-quarantined | The agent is in quarantine. | agent release ends it; agent show says why it is.
agent-serial-unknown | The agent has no SVID with this serial number. | agent show names those that are in question.
agent-svid-expired | The agent's SVID has expired and could not be renewed. | Check that the server can be reached; the agent goes on trying.
agent-svid-not-active | The agent shows an SVID that is not its newest. | Make sure that no two agents use a copy of the same data folder.
agent-svid-unusable | The agent's own SVID does not verify against its bundle. | Wait for the next rotation; see the agent's log.
alpn | The peer does not speak HTTP/2. | Check address and port: something else may listen there.
answer-incomplete | The server's answer lacks what it has to hold. | See the server's log; server and command may be of different versions.
answer-too-large | The answer is larger than a gRPC message may be. | Ask for pages, or for fewer fields by an output mask.
audience-missing | A JWT-SVID needs an audience. | Add -audience, the name of the service it is for.
audience-too-long | The audience is longer than is accepted. | Choose a shorter name.
authorization-denied | This caller may not use this method. | Call on the admin socket, or with an identity that is an admin.
broker-identity | The broker has no identity of its own to show. | See its X.509 source: entry and agent.
broker-identity-refused | The endpoint cannot tell who the broker is, and there is no newer certificate. | Compare trust domains and bundles of both sides.
broker-not-authorized | The caller is no authorized broker. | Add its SPIFFE ID to the brokers of the agent's configuration.
cidr | The network is malformed. | Write it like 10.0.0.0/8.
client-certificate-expired | The client certificate has expired. | Renew it; an agent does so by itself.
client-certificate-missing | The client shows no certificate. | Show one: this address takes mutual TLS only.
client-certificate-untrusted | The client certificate is not trusted any more. | Attest again: its authority was revoked.
clock-too-early | The clock is earlier than the certificate's beginning. | Set this machine's clock.
config-invalid | The configuration has faults. | All are listed; validate -explain describes every key.
config-not-found | There is no such configuration file. | Name it with -config.
config-syntax | The configuration file is not well-formed. | The message has line and column.
config-unreadable | The configuration file cannot be read. | Check its owner and mode.
confirmation-needed | The command changes or removes something and there is no terminal to ask on. | Add -yes.
connection-failed | No connection could be made. | Check the address, and that the program behind it runs.
connection-lost | The connection broke while waiting. | Try again.
connection-string | The connection string of the datastore is malformed. | Write it as postgresql://user@host/database.
datastore-conflict | Another write came between. | Try again.
datastore-refused | The database refused the statement. | See the server's log.
datastore-standby | The database is a read-only standby. | Name the primary in the connection string.
datastore-tls | A certificate or key file for the database cannot be read. | Check the paths in the connection string.
datastore-unavailable | The database cannot be reached. | Check that it runs and can be reached; signing goes on meanwhile.
datastore-version | The database is too old. | Use PostgreSQL 13 or newer.
delegate-not-authorized | The caller is no authorized delegate. | Add its SPIFFE ID to authorized_delegates.
delegate-target | The delegate asks for a workload in a way that is not supported. | Name selectors or a process, not both.
dev-entry | The entry for your user was refused. | The message has the reason.
dev-no-rotation | No rotation came in time. | See the output for errors.
dev-program-ended | A program that was started ended by itself. | Its last lines say why.
dev-ttl | The lifetime is too short to be shown. | Choose a longer -ttl.
directory-locked | Another process uses the directory. | Stop it, or use another directory.
directory-unsafe | The directory may be changed by others. | Take away write permission of group and others.
embedded-open | The embedded datastore cannot be opened. | Restore the folder, or import an export into a new one.
endpoint-address-authority | The address of the Workload API or Broker API has an authority part. | Write unix:/path/to/socket.
endpoint-address-extra | The address of the Workload API or Broker API has a part too many. | Write unix:/path/to/socket.
endpoint-address-host | The address needs an IP address; that of the Broker API may have a host name. | Write unix:/path/to/socket.
endpoint-address-missing | No address of the Workload API or Broker API is set. | Set SPIFFE_ENDPOINT_SOCKET or SPIFFE_BROKER_SOCKET to unix:/path/to/socket.
endpoint-address-path | The address of the Workload API or Broker API needs an absolute path. | Write unix:/path/to/socket.
endpoint-address-port | The address of the Workload API or Broker API needs a port. | Write unix:/path/to/socket.
endpoint-address-scheme | The address of the Workload API or Broker API has an unknown scheme. | Write unix:/path/to/socket.
entry-create-failed | Entries were refused. | Each is listed with its reason; the others are made.
entry-data | The data of entries or IDs is malformed. | The message names the place; --help has an example.
entry-delete-failed | Entries could not be deleted. | Each is listed with its reason; the others are gone.
entry-exists | An entry with this ID exists. | Choose another ID, or update the entry.
entry-expiry | The entry's expiry is out of range. | Write seconds since the epoch.
entry-hint | The hint is too long. | Choose a shorter one.
entry-id | The entry ID is malformed. | Use letters, digits, dots, dashes and underscores.
entry-not-found | There is no entry with this ID. | entry show lists them.
entry-similar | An entry with the same SPIFFE ID, parent and selectors exists. | Update that entry.
entry-size | The entry is larger than is stored. | Use fewer or shorter values.
entry-store-svid | A stored SVID cannot be combined with this attribute. | Leave one of them out.
entry-ttl | The lifetime is out of range. | Use seconds, 0 for the server's default.
entry-update-failed | Entries were refused. | Each is listed with its reason; the others are changed.
error-code-unknown | There is no error code of this name. | errors lists all codes.
expires-before | The time is not in the form that is read. | Write it like "2027-01-31 12:00:00 +0000 +00".
export-broken | The export is not whole. | Export again.
export-file | The file cannot be written. | Name a file that does not exist, in a folder you may write.
export-schema | The export is of another version. | Import it with that version, then upgrade.
federation-create-failed | Relationships were refused. | Each is listed with its reason; the others are made.
federation-data | The data of a relationship is malformed. | The message names the place; --help has an example.
federation-delete-failed | The relationship could not be deleted. | federation list shows them.
federation-not-found | There is no relationship with this trust domain. | federation list shows them.
federation-update-failed | Relationships were refused. | Each is listed with its reason; the others are changed.
file-error | A file cannot be read or written. | Check its owner and mode, and the space on the disk.
file-too-large | The file is larger than 4 MiB. | Check that it is the right one.
filter-empty | A filter names nothing. | Add a value, or leave the filter out.
filter-match | The way to match is unknown. | Choose exact, subset, superset or any.
flag-missing | A flag is missing, or does not go with the others. | See the command's --help.
foreign-schema | The database belongs to something else. | Use an empty database.
input-too-large | Standard input is larger than is read. | Split it into several calls.
input-unreadable | The file cannot be read. | Give the path of a readable file, or - for standard input.
kept-svid-unusable | The SVID that was kept cannot be used. | The agent attests again.
listen-failed | The address cannot be listened on. | Free the port or path, or choose another.
lock-failed | The data folder cannot be locked. | Use a file system that has locks.
log-file-unavailable | The log file cannot be opened. | Check its folder and mode.
log-level-unknown | The log level is unknown. | Choose panic, fatal, error, warn, info, debug or trace.
malformed | Something in the request cannot be read. | Mend what the message names.
match-behavior | The way to match is unknown. | Choose exact, subset, superset or any.
metrics-certificate | The certificate of the metrics endpoint cannot be read. | See telemetry.Prometheus.tls.
migration-denied | The database user may not create tables. | Grant it, or let an owner run the first start.
migration-disabled | The schema is older than this program, and migration is switched off. | Set disable_migration = false for one start.
network-format | The network is malformed. | Write it like 10.0.0.0/8.
no-answer | The agent ended the stream without an answer. | Try again; see the agent's log.
no-update | No update has been received yet. | Wait for the first one.
not-confirmed | The question was not answered with yes. | Answer y, or add -yes.
number-out-of-range | The number is out of range. | Choose a smaller one.
page-size | The page size is out of range. | Choose one from 0 on.
page-token | The page token is not one of this server's. | Begin with the first page.
peer-answer | The other side's answer cannot be used. | See what answers at that address.
peer-unknown | The call did not come over mutual TLS. | Show a client certificate.
peer-unreachable | The other side cannot be reached. | Check address and network.
port-in-use | Another process listens on the port. | Stop it, or choose another port.
proxy-header | The proxy's header is malformed or missing. | Send PROXY protocol from trusted proxies only; see proxy_protocol_trusted_cidrs.
push-divergence | Agent and server do not come to agree on the entries. | The agent goes on by polling; see both logs.
push-silent | The server has fallen silent on the push stream. | The agent goes on by polling, and connects again.
rate-limit | There were too many calls. | Wait a second; see ratelimit in the server's configuration.
rebootstrap-impossible | The agent cannot start over with this configuration. | Give it a way to bootstrap and to attest again.
reference-type-local | The reference holds on the same machine only. | Call on the Unix socket.
reference-type-not-allowed | The broker may not name workloads in this way. | See the reference types of the broker in the agent's configuration.
reflection-local | Reflection is answered on the Unix socket only. | Call there.
relationship-changed | The relationship was changed or deleted while its bundle was fetched. | Try again, if there is still a relationship.
relationship-exists | A relationship with the trust domain exists. | Update it.
relationship-invalid | The relationship is malformed. | The message names the field.
relationship-not-found | There is no relationship with the trust domain. | federation list shows them.
rpc-handler | A method is wired wrongly. | This is a fault of the program.
rpc-request-extra | The request has more than one message. | Send one.
rpc-request-missing | The request has no message. | Send one.
schema-newer | The database is of a newer version. | Run that version.
security-header-missing | The call lacks the header that keeps browsers away. | Send workload.spiffe.io: true.
selector-format | The selector is malformed. | Write it as type:value, such as unix:uid:1000.
selector-malformed | The selector is malformed. | Write it as type:value, such as unix:uid:1000.
selector-type | The selector has no type, or one with a colon. | Write it as type:value, such as unix:uid:1000.
selector-value | The selector has no value. | Write it as type:value, such as unix:uid:1000.
selectors-missing | There are no selectors. | Add at least one.
server-certificate-missing | The server shows no certificate. | Check address and port.
server-chain-empty | The server shows no certificate. | Check address and port.
server-id | The server is not the trust domain's server. | Check trust_domain and the server's address.
server-initializing | The server is still starting. | Try again.
socket-directory-owner | The socket's folder belongs to somebody else. | Use a folder of the program's own user.
socket-in-use | Another process uses the socket. | Stop it, or choose another path.
socket-path-length | The socket's path would be too long. | Use a shorter data folder.
socket-path-taken | There is something other than a socket at the path. | Remove it, or choose another path.
socket-path-too-long | The socket's path is too long. | Choose a shorter one.
socket-template | The template of socket paths is missing or lacks %i. | Set it in the environment, with %i for the instance.
store-not-empty | The datastore to import into is not empty. | Use an empty one.
source-closed | The source was closed, or what it came from. | Open another one.
stream-ended | The endpoint ended the stream. | Nothing: the client connects again.
sync-ended-early | The server ended the list of entries too early. | The agent asks again.
sync-mixed-page | The server mixed pages of entries. | The agent asks again.
tls-handshake | The TLS handshake failed. | The message says why; compare bundle, address and clock.
too-many-calls | Too many calls are open. | End those that are not used; a workload needs few streams.
too-many-connections | Too many connections are open. | Close those that are not used; one connection carries many calls.
too-many-revisions | An agent says that it holds more entries than there can be. | See whether the machine does what it should.
too-many-streams | An agent has more streams open than it needs. | See whether the machine does what it should, or its SVID was copied.
unhealthy | The program is not healthy. | Run healthcheck -verbose, and see its log.
unusable-answer | The Workload API's answer cannot be used. | See who answers on the socket.
usage | The command line is not one that is read. | See the command's --help.
value-not-storable | A value has characters that cannot be stored. | Leave out NUL characters.
value-too-long | A value is longer than is stored. | Choose a shorter one.
vault-400 | Vault does not understand the request. | See mount and key of the plugin.
vault-403 | Vault refuses the request. | Check the token and its policy.
vault-404 | Vault has no such path or key. | See mount and key of the plugin.
vault-429 | Vault is asked too often. | Try again; see its rate limits.
vault-500 | Vault failed. | See its log.
vault-503 | Vault is sealed or in maintenance. | Unseal it.
vault-answer | Vault refused, or its answer cannot be used. | The message has Vault's reason; see policy and mount of the plugin.
vault-away | Vault cannot be reached. | Check its address, and that it is unsealed.
workload-api-response | The Workload API's answer cannot be read. | See who answers on the socket.
workload-not-entitled | The workload has no identity. | Create an entry whose selectors it has.
workload-not-found | There is no such workload. | Check the reference.
workload-reference-invalid | The reference to the workload is malformed. | See the Broker API.
workload-reference-local | A reference to a local process would go to another machine. | Use the broker endpoint of the process's own node.
`;
