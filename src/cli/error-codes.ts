/** The stable code of an error, what happened, and what to do next. */
export interface ErrorCode {
  readonly code: string;
  readonly cause: string;
  readonly fix: string;
}

/**
 * Every code that these programs give an error, in order; at the end the general ones, for what has no code of its own
 * or comes from another server. `code | cause | fix`.
 */
const TABLE = `
accounts-size | The file of user or group names is larger than is read. | Keep local accounts few, or set up workload entries by uid and gid.
agent-banned | The agent is banned. | Evict it with agent evict, then let it attest again.
agent-data-damaged | The agent's data file cannot be read. | Remove the file; the agent attests again.
agent-expired | The agent's SVID has expired. | The agent attests again by itself if its attestation method allows it; otherwise give it a new join token.
agent-must-reattest | The server asks the agent to attest again. | Nothing: a re-attestable agent does so by itself.
agent-not-active | The agent shows an SVID that is not its newest. | Make sure that no two agents use a copy of the same data folder.
agent-not-attested | The server does not know the agent, or the agent has no SVID yet. | Attest it: a join token, or the attestor that both sides are configured with.
agent-not-found | No agent with this SPIFFE ID has attested. | agent list shows those that have.
agent-not-ready | The agent has not received its entries from the server yet. | Try again; if it stays so, see the agent's log for the connection to the server.
agent-path | The node attestor's evidence does not make a valid agent path. | See agent_path_template in the server's configuration.
agent-path-template | The template of agent paths is malformed. | Correct agent_path_template.
agent-svid-expired | The agent's SVID has expired and could not be renewed. | Check that the server can be reached; the agent goes on trying.
agent-svid-not-active | The agent shows an SVID that is not its newest. | Make sure that no two agents use a copy of the same data folder.
agent-svid-unusable | The agent's own SVID does not verify against its bundle. | Wait for the next rotation; see the agent's log.
alpn | The peer does not speak HTTP/2. | Check address and port: something else may listen there.
answer-incomplete | The server's answer lacks what it has to hold. | See the server's log; server and command may be of different versions.
answer-too-large | The answer is larger than a gRPC message may be. | Ask for pages, or for fewer fields by an output mask.
asn1-malformed | A certificate or key is not well-formed DER. | Make it again with a current tool.
attestation-ended-early | The server ended the attestation without an answer. | See the server's log.
attestation-overload | Too many attestations of one user wait. | Let the callers keep one stream open instead of asking again and again.
attestation-timeout | The attestation took too long. | Try again; see whether the machine or the platform's API is overloaded.
attestation-unexpected-challenge | The server sent a challenge that this attestor does not have. | Configure the same attestor on both sides.
attestation-used | This evidence has attested an agent before and may do so once only. | Evict that agent, or attest with new evidence.
audience-missing | A JWT-SVID needs an audience. | Add -audience, the name of the service it is for.
audience-too-long | The audience is longer than is accepted. | Choose a shorter name.
authority-id | The authority ID is malformed. | localauthority x509 show, or jwt show, lists the IDs.
authority-id-missing | The request names no authority. | localauthority x509 show, or jwt show, lists the IDs.
authority-in-use | The active authority cannot be tainted or revoked. | Prepare and activate another one first.
authority-not-found | The bundle holds no such authority. | localauthority x509 show, or jwt show, lists the IDs.
authority-state | The authority is in a state that does not allow this step. | The order is prepare, activate, taint, revoke.
authority-status | The authority is in a state that does not allow this step. | The order is prepare, activate, taint, revoke.
authority-still-in-use | Something that the authority signed is still in use. | Wait until everything is replaced before revoking.
authority-unexpected | The authority ID is not the one that this step is about. | localauthority x509 show, or jwt show, lists the IDs.
authorization-denied | This caller may not use this method. | Call on the admin socket, or with an identity that is an admin.
bearer-missing | Exactly one bearer token is needed. | Send one Authorization header.
bearer-plaintext | A JWT-SVID is not sent without TLS. | Use https.
bundle-delete-mode | The mode of bundle delete is unknown. | Choose restrict, delete or dissociate.
bundle-fetch-not-offered | This version does not fetch bundles from endpoints yet. | Set the bundle with bundle set.
bundle-format | The bundle format is unknown. | Choose pem or spiffe.
bundle-in-use | Entries federate with the bundle's trust domain. | Delete with -mode dissociate or -mode delete, or change the entries first.
bundle-key | A key of the bundle cannot be used. | Ask the other trust domain for its current bundle.
bundle-malformed | The bundle cannot be read. | Check file and format: PEM certificates, or a SPIFFE bundle document.
bundle-missing | There is no bundle of the trust domain. | Set one with bundle set, or wait for the first update.
bundle-not-found | No bundle of this trust domain is held. | bundle list shows them.
bundle-refused | The server refused the bundle, or its deletion. | The message has the reason.
bundle-too-large | The bundle would be larger than a message may be. | Revoke authorities that are no longer needed.
bundle-unusable | The server's bundle is empty or names another trust domain. | Check trust_domain on both sides.
caller-changed | The calling process went away or became another while it was attested. | Call again.
caller-unknown | The calling process could not be attested. | See the agent's log for the attestor and its reason.
certificate-expired | The certificate has expired. | Renew it, and compare the clocks of both machines.
certificate-lint | A certificate would break the SPIFFE profile and is not signed. | This is a fault of the program or of an upstream authority: see the server's log.
certificate-not-yet-valid | The certificate is not valid yet. | Compare the clocks of both machines.
certificate-revoked | The certificate is on its issuer's revocation list. | Get a new one.
certificate-signature | A certificate's signature is wrong. | Check that the bundle is that of the certificate's trust domain.
certificate-too-large | The certificate is larger than is read. | Make one with fewer names.
cgroup-malformed | The control groups of a process cannot be read. | See which runtime made the container.
chain-too-long | The certificate chain is longer than is accepted. | Send leaf and intermediates only.
cidr | The network is malformed. | Write it like 10.0.0.0/8.
client-certificate-expired | The client certificate has expired. | Renew it; an agent does so by itself.
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
container-ambiguous | A process seems to be in several containers. | See the workload attestor's configuration of control groups.
container-unknown | The container of the process is not known to the engine. | Check that the agent talks to the engine that made it.
crl-size | The revocation list is larger than is read. | Publish a smaller one.
csr-signature | The certificate request's signature is wrong. | Make the request again with the matching key.
csr-too-large | The certificate request is larger than 16 KiB. | Make one with fewer names.
datastore-conflict | Another write came between. | Try again.
datastore-refused | The database refused the statement. | See the server's log.
datastore-standby | The database is a read-only standby. | Name the primary in the connection string.
datastore-tls | A certificate or key file for the database cannot be read. | Check the paths in the connection string.
datastore-unavailable | The database cannot be reached. | Check that it runs and can be reached; signing goes on meanwhile.
datastore-version | The database is too old. | Use PostgreSQL 13 or newer.
dbus-malformed | D-Bus answered something that cannot be read. | See the agent's log.
dbus-unavailable | D-Bus cannot be reached. | Check the system bus socket, or leave the systemd attestor out.
delegate-not-authorized | The caller is no authorized delegate. | Add its SPIFFE ID to authorized_delegates.
delegate-target | The delegate asks for a workload in a way that is not supported. | Name selectors or a process, not both.
dev-entry | The entry for your user was refused. | The message has the reason.
dev-no-rotation | No rotation came in time. | See the output for errors.
dev-program-ended | A program that was started ended by itself. | Its last lines say why.
dev-ttl | The lifetime is too short to be shown. | Choose a longer -ttl.
digest-changed | The executable changed while it was read. | Start the workload again.
digest-not-a-file | The executable is not a regular file. | Run the workload from a file.
digest-size | The executable is larger than workload_size_limit. | Raise the limit, or do without its digest.
digest-time | Reading the executable took too long. | Set a workload_size_limit.
directory-locked | Another process uses the directory. | Stop it, or use another directory.
directory-unsafe | The directory may be changed by others. | Take away write permission of group and others.
dns-name | The DNS name is malformed. | Use letters, digits and dashes; a wildcard only as the first label.
dns-name-overlap | A DNS name is given twice, or covered by a wildcard. | Leave one out.
embedded-open | The embedded datastore cannot be opened. | Restore the folder, or import an export into a new one.
empty-chain | There is no certificate. | Send the certificate and its intermediates.
endpoint-address-authority | The address of the Workload API has an authority part. | Write unix:/path/to/socket.
endpoint-address-extra | The address of the Workload API has a part too many. | Write unix:/path/to/socket.
endpoint-address-host | The address of the Workload API needs an IP address. | Write unix:/path/to/socket.
endpoint-address-missing | No address of the Workload API is set. | Set SPIFFE_ENDPOINT_SOCKET=unix:/path/to/socket.
endpoint-address-path | The address of the Workload API needs an absolute path. | Write unix:/path/to/socket.
endpoint-address-port | The address of the Workload API needs a port. | Write unix:/path/to/socket.
endpoint-address-scheme | The address of the Workload API has an unknown scheme. | Write unix:/path/to/socket.
endpoint-transport | The Workload API is not called over TCP. | Use a Unix socket.
engine-refused | The container engine cannot be used. | Check its socket and the agent's permission.
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
evidence-malformed | The attestor's evidence cannot be read. | Run matching versions on both sides.
expires-before | The time is not in the form that is read. | Write it like "2027-01-31 12:00:00 +0000 +00".
export-broken | The export is not whole. | Export again.
export-file | The file cannot be written. | Name a file that does not exist, in a folder you may write.
export-schema | The export is of another version. | Import it with that version, then upgrade.
ext-key-usage | The certificate may not be used for TLS. | It is no X.509-SVID: see who issued it.
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
foreign-trust-domain | The identity is of another trust domain. | Check the SPIFFE ID.
http-challenge-evidence | The http_challenge evidence is malformed. | Check hostname and agent name of the attestor.
http-challenge-listen | The port of the http_challenge attestor cannot be opened. | Free the port, or choose another.
input-too-large | Standard input is larger than is read. | Split it into several calls.
input-unreadable | The file cannot be read. | Give the path of a readable file, or - for standard input.
join-token-characters | The join token has characters that are not allowed. | Use letters, numbers, dots, dashes and underscores.
join-token-exists | The join token exists. | Leave it out, and one is made.
join-token-expired | The join token has expired. | Make a new one with token generate.
join-token-missing | No join token was given. | Add -joinToken; token generate makes one.
join-token-used | The join token is unknown or was used. | Make a new one with token generate: each is good once.
jwk-malformed | A JSON Web Key is malformed. | Ask the other trust domain for its current bundle.
jws-algorithm | The signing algorithm does not go with the key. | Choose one that does.
jws-malformed | The token is not well-formed. | Give the whole token, with its two dots.
jwt-disabled | JWT-SVIDs are switched off. | See disable_jwt_svids in the server's configuration.
jwt-key-expired | The JWT key has expired and no new one is active. | A new one is made within seconds; compare the clock.
jwt-key-missing | There is no active JWT key. | A new one is made within seconds; see the server's log.
jwt-key-not-published | The JWT key is not in the bundle yet. | Wait until the bundle is stored; see the server's log.
jwt-key-not-yet-valid | The JWT key is not valid yet. | Compare this machine's clock.
jwt-key-tainted | The JWT key is tainted. | A new one is made within seconds.
jwt-svid-unavailable | The agent could not get the JWT-SVID. | The message has the server's reason.
k8s-psat-evidence | The service account token is malformed. | Project a token into the agent's pod.
k8s-psat-refused | The service account, cluster or pod is not accepted. | See the clusters of the k8s_psat attestor.
k8s-psat-token | The service account token cannot be read. | See token_path, and the agent's pod.
kept-svid-unusable | The SVID that was kept cannot be used. | The agent attests again.
key-file | The key file cannot be read or written. | Check its owner and mode, and restore it when it is damaged.
key-id-missing | A key has no ID. | Give it one.
key-id-taken | The key ID belongs to another key. | Choose another ID.
key-type | The key type does not fit. | The message names those that do.
kube-api | The Kubernetes API did not answer as it should. | Check address, credentials and role of the server.
kube-config | The Kubernetes configuration cannot be used. | See kube_config_file.
kubelet-answer | The kubelet's answer cannot be read. | Check what listens on its port.
kubelet-credentials | The kubelet's credentials cannot be read. | See token and certificate paths of the k8s attestor.
kubelet-disabled | The kubelet is needed, and switched off. | See the k8s attestor's configuration.
kubelet-refused | The kubelet refused the agent. | Give the agent's service account the right to read nodes/proxy.
kubelet-unavailable | The kubelet cannot be reached. | Check port and network of the node.
leaf-crl-sign | The leaf may sign revocation lists. | It is no X.509-SVID: see who issued it.
leaf-is-ca | The leaf is a certificate authority. | It is no X.509-SVID: see who issued it.
leaf-key-cert-sign | The leaf may sign certificates. | It is no X.509-SVID: see who issued it.
leaf-no-digital-signature | The leaf may not sign. | It is no X.509-SVID: see who issued it.
leeway | The leeway is out of range. | Choose 0 to 120 seconds.
listen-failed | The address cannot be listened on. | Free the port or path, or choose another.
lock-failed | The data folder cannot be locked. | Use a file system that has locks.
log-file-unavailable | The log file cannot be opened. | Check its folder and mode.
log-level-unknown | The log level is unknown. | Choose panic, fatal, error, warn, info, debug or trace.
malformed | Something in the request cannot be read. | The message names it.
match-behavior | The way to match is unknown. | Choose exact, subset, superset or any.
metrics-certificate | The certificate of the metrics endpoint cannot be read. | See telemetry.Prometheus.tls.
migration-denied | The database user may not create tables. | Grant it, or let an owner run the first start.
migration-disabled | The schema is older than this program, and migration is switched off. | Set disable_migration = false for one start.
missing-key-cert-sign | An authority may not sign certificates. | Replace it in the bundle.
name-constraint | A certificate breaks a name constraint of its issuer. | Ask the issuer for a suitable authority.
namespace-labels | The labels of a namespace cannot be read. | Give the agent the right to read namespaces.
network-format | The network is malformed. | Write it like 10.0.0.0/8.
no-answer | The agent ended the stream without an answer. | Try again; see the agent's log.
no-bundle | There is no bundle of the trust domain. | Federate with it: an entry's federatesWith, and bundle set.
no-identity-issued | No entry matches the calling process. | Create an entry whose selectors it has, under an agent that attested.
no-path | The SPIFFE ID has no path. | It is no workload's: see who issued it.
no-such-hint | No identity has the hint. | See the hints of the entries.
no-update | No update has been received yet. | Wait for the first one.
no-upstream-authority | The server has no upstream authority. | This goes with a server that has one only.
no-uri-san | The certificate has no SPIFFE ID. | It is no X.509-SVID: see who issued it.
node-attestor-unknown | The server does not have this node attestor. | Configure it on the server, or another one on the agent.
node-serial | A node has no serial number. | Attest it again.
not-a-ca | A certificate of the chain is no authority. | Send leaf and intermediates only.
not-confirmed | The question was not answered with yes. | Answer y, or add -yes.
not-reattestable | The agent cannot attest again with this method. | Evict it and give it a new join token.
number-out-of-range | The number is out of range. | Choose a smaller one.
page-size | The page size is out of range. | Choose one from 0 on.
page-token | The page token is not one of this server's. | Begin with the first page.
path-length | The chain is longer than an authority allows. | Ask the issuer for a suitable authority.
path-lookup | The path of the executable cannot be used. | Run the workload from a plain path.
peer-answer | The other side's answer cannot be used. | See what answers at that address.
peer-changed | The calling process changed while it connected. | Call again.
peer-credentials | The kernel did not tell who calls. | Call from the same machine on a Unix socket.
peer-gone | The calling process has ended. | Call again.
peer-not-visible | The calling process is not visible to the agent. | Run the agent in the host's PID namespace.
peer-unknown | The call did not come over mutual TLS. | Show a client certificate.
peer-unreachable | The other side cannot be reached. | Check address and network.
pem-malformed | The PEM text is malformed. | Check that the file is whole.
port-in-use | Another process listens on the port. | Stop it, or choose another port.
private-key-malformed | The private key is malformed. | Give a PKCS#8 key.
proc-size | A file of /proc is larger than is read. | See what the process is.
proc-status | The process's status cannot be read. | Run the agent with access to /proc.
process-gone | The process has ended. | Call again.
profile-not-offered | The agent or server does not offer this kind of SVID. | Switch it on, or use another kind.
proxy-header | The proxy's header is malformed or missing. | Send PROXY protocol from trusted proxies only; see proxy_protocol_trusted_cidrs.
public-key | The public key is weak or of an unknown type. | Use P-256, P-384, or RSA of 2048 bits or more.
public-key-malformed | The public key is malformed. | Give a SubjectPublicKeyInfo.
push-divergence | Agent and server do not come to agree on the entries. | The agent goes on by polling; see both logs.
push-silent | The server has fallen silent on the push stream. | The agent goes on by polling, and connects again.
rate-limit | There were too many calls. | Wait a second; see ratelimit in the server's configuration.
rebootstrap-impossible | The agent cannot start over with this configuration. | Give it a way to bootstrap and to attest again.
relationship-exists | A relationship with the trust domain exists. | Update it.
relationship-invalid | The relationship is malformed. | The message names the field.
relationship-not-found | There is no relationship with the trust domain. | federation list shows them.
rpc-handler | A method is wired wrongly. | This is a fault of the program.
rpc-request-extra | The request has more than one message. | Send one.
rpc-request-missing | The request has no message. | Send one.
schema-newer | The database is of a newer version. | Run that version.
sds-not-authorized | The workload has no such identity. | Create an entry whose selectors it has.
sds-too-many-names | Too many secrets are asked for. | Ask for fewer.
sds-type-unknown | The type of resource is not served. | Ask for secrets.
sds-validator-needed | Several bundles need Envoy's SPIFFE validator. | Use an Envoy that has it.
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
several-uri-sans | The certificate has several URIs. | It is no X.509-SVID: see who issued it.
signing-algorithm | The signing algorithm is unknown. | The message names those that are known.
signing-busy | Too many signatures wait. | Try again in a moment.
socket-directory-owner | The socket's folder belongs to somebody else. | Use a folder of the program's own user.
socket-in-use | Another process uses the socket. | Stop it, or choose another path.
socket-path-length | The socket's path would be too long. | Use a shorter data folder.
socket-path-taken | There is something other than a socket at the path. | Remove it, or choose another path.
socket-path-too-long | The socket's path is too long. | Choose a shorter one.
socket-template | The template of socket paths is missing or lacks %i. | Set it in the environment, with %i for the instance.
spiffe-id-empty | The SPIFFE ID is empty. | Write it as spiffe://trust-domain/path.
spiffe-id-invalid | The SPIFFE ID is malformed. | Write it as spiffe://trust-domain/path.
spiffe-id-missing | The request names no SPIFFE ID. | Add it.
spiffe-id-path | The path of the SPIFFE ID is malformed. | Use segments of letters, digits, dots, dashes and underscores.
spiffe-id-role | The SPIFFE ID has another role than is needed. | The message says which.
spiffe-id-scheme | The SPIFFE ID does not begin with spiffe://. | Write it as spiffe://trust-domain/path.
spiffe-id-too-long | The SPIFFE ID is longer than 2048 bytes. | Choose a shorter path.
ssh-malformed | SSH data is malformed. | Check the host key and its certificate.
ssh-private-key | The SSH host key cannot be used. | See host_key_path.
sshpop-keypair | The SSH host certificate cannot be used. | See host_cert_path and host_key_path.
sshpop-refused | The SSH host certificate is not accepted. | See cert_authorities of the sshpop attestor.
store-not-empty | The datastore to import into is not empty. | Use an empty one.
stream-ended | The Workload API ended the stream. | Nothing: the client connects again.
svid-chain-empty | The server's answer has no certificate. | See the server's log.
svid-expired | The SVID has expired and no newer one came. | Check that the agent runs and reaches its server.
svid-id | The SVID names another identity than was asked for. | See the server's log.
svid-key | The SVID is for another key. | See the server's log.
svid-malformed | The SVID cannot be read. | See the server's log.
svid-missing | There is no SVID in the request. | Add -svid.
sync-ended-early | The server ended the list of entries too early. | The agent asks again.
sync-mixed-page | The server mixed pages of entries. | The agent asks again.
systemd-unit | The systemd unit of the process cannot be found. | Check that systemd runs, and the agent's access to it.
tls-handshake | The TLS handshake failed. | The message says why; compare bundle, address and clock.
token-aud | The token's audience is malformed. | Ask for a new token.
token-audience | The token is for another audience. | Ask for a token with this service's audience.
token-cnf | The token is not bound to a key. | It is no WIT-SVID: see who issued it.
token-exp | The token has no expiry. | Ask for a new token.
token-expired | The token has expired. | Ask for a new token, and compare the clocks.
token-key | The token is bound to another key, or to none. | Sign with the key of the token.
token-key-ending | The signing key is about to expire. | Try again: a new key becomes active within seconds.
token-kid | The token names no key. | Ask for a new token.
token-lifetime | The token lives longer than is accepted. | Ask for a shorter one.
token-not-yet-valid | The token is not valid yet. | Compare the clocks.
token-signature | The token's signature is wrong. | Check that the bundle is that of the token's trust domain.
token-subject | The token's subject is no SPIFFE ID of a workload. | See who issued it.
token-typ | The token's type is wrong. | Check that it is the right kind of token.
token-unsupported | The token's algorithm is not accepted. | See who issued it.
too-many-connections | Too many connections are open. | Close those that are not used; one connection carries many calls.
trust-bundle-download | The trust bundle cannot be downloaded. | Check trust_bundle_url and the network.
trust-bundle-empty | The trust bundle has no certificates. | Give the server's bundle: bundle show prints it.
trust-bundle-missing | The agent has no trust bundle. | Set trust_bundle_path or trust_bundle_url, or insecure_bootstrap for a trial.
trust-bundle-unreadable | The trust bundle cannot be read. | Check file and trust_bundle_format.
trust-bundle-workload-api | The trust bundle cannot be taken from a Workload API. | Check the socket, and who answers on it.
trust-domain-characters | The trust domain has characters that are not allowed. | Use lower-case letters, digits, dots, dashes and underscores.
trust-domain-mismatch | The trust domain is another one. | Check trust_domain on both sides.
trust-domain-missing | The trust domain is missing. | Write it as example.org.
trust-domain-too-long | The trust domain is longer than 255 bytes. | Choose a shorter one.
unexpected-id | The other side is somebody else. | Check address and expected SPIFFE ID.
unexpected-trust-domain | The other side is of another trust domain. | Check address and trust domain.
unhealthy | The program is not healthy. | Run healthcheck -verbose, and see its log.
unknown-authority | No authority of the bundle signed the certificate. | Check that the bundle is current.
unknown-critical-extension | A certificate has a critical extension that is not known. | Ask the issuer for one without.
unusable-answer | The Workload API's answer cannot be used. | See who answers on the socket.
upstream-authority | The upstream authority refused or failed. | The message has its reason.
usage | The command line is not one that is read. | See the command's --help.
value-not-storable | A value has characters that cannot be stored. | Leave out NUL characters.
value-too-long | A value is longer than is stored. | Choose a shorter one.
wit-disabled | WIT-SVIDs are switched off. | See the feature flag wit-svid.
wit-key-expired | The WIT key has expired and no new one is active. | A new one is made within seconds; compare the clock.
wit-key-missing | There is no active WIT key. | A new one is made within seconds; see the server's log.
wit-key-not-published | The WIT key is not in the bundle yet. | Wait until the bundle is stored; see the server's log.
wit-key-not-yet-valid | The WIT key is not valid yet. | Compare this machine's clock.
wit-key-tainted | The WIT key is tainted. | A new one is made within seconds.
wit-svid-unavailable | The agent could not get the WIT-SVID. | The message has the server's reason.
workload-api-response | The Workload API's answer cannot be read. | See who answers on the socket.
workload-attestation-failed | The calling process could not be attested. | See the agent's log for the attestor and its reason.
x509-ca-expired | The X.509 authority has expired and no new one is active. | A new one is made within seconds; compare the clock.
x509-ca-missing | There is no active X.509 authority. | A new one is made within seconds; see the server's log.
x509-ca-not-published | The X.509 authority is not in the bundle yet. | Wait until the bundle is stored; see the server's log.
x509-ca-not-yet-valid | The X.509 authority is not valid yet. | Compare this machine's clock.
x509-ca-tainted | The X.509 authority is tainted. | A new one is made within seconds.
x509pop-address | The client's address does not match its certificate. | See the x509pop attestor's address check.
x509pop-ca-bundle | The CA bundle of the x509pop attestor cannot be used. | See ca_bundle_path.
x509pop-chain | The certificate is not accepted. | See ca_bundle_path, and the certificate's issuer.
x509pop-evidence | The x509pop evidence is malformed. | Run matching versions on both sides.
x509pop-key-type | The key type is not accepted. | Use RSA, P-256 or P-384.
x509pop-key-usage | The certificate may not sign. | Ask for one with digital signature.
x509pop-keypair | Certificate and key cannot be used. | See certificate_path and private_key_path.
x509pop-proof | The proof of possession is wrong. | Check that key and certificate belong together.
x509pop-workload-api | The SVID for x509pop cannot be fetched. | Check the Workload API socket.
invalid | Something in the request is not right. | The message names it.
not_found | There is no such thing. | The list commands show what there is.
already_exists | It exists. | Update it, or choose another name.
denied | This caller may not do this, or has no identity here. | A workload needs an entry whose selectors it has; an operator the admin socket, or an identity that is an admin.
unauthenticated | The caller showed no identity that is accepted. | Show a valid SVID.
precondition | The state does not allow this step now. | The message says what comes first.
exhausted | There were too many calls, or a message was too large. | Wait, or ask for less.
aborted | Another change came between. | Try again.
unavailable | The other side cannot be reached. | Check the address, and that the program behind it runs.
timeout | No answer came in time. | Try again; see whether the other side is overloaded.
cancelled | The operation was stopped. | Start it again.
unimplemented | The other side does not have this method. | Use a version that does.
internal | Something failed that should not. | See the log of the program that answered, by the request's ID.
`;

export const ERROR_CODES: readonly ErrorCode[] = TABLE.trim()
  .split("\n")
  .map((line) => {
    const [code = "", cause = "", fix = ""] = line.split(" | ");
    return { code, cause, fix };
  });

/** What to do about an error that brings no advice of its own. */
export function fixOf(code: string): string | undefined {
  return ERROR_CODES.find((known) => known.code === code)?.fix;
}
