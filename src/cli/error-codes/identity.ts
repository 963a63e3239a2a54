/** Of identities: certificates, tokens, keys, bundles, authorities. `code | cause | fix`, by code. */
export const IDENTITY_CODES = `
asn1-malformed | A certificate or key is not well-formed DER. | Make it again with a current tool.
authority-id | The authority ID is malformed. | localauthority x509 show, jwt show or wit show lists the IDs.
authority-id-missing | The request names no authority. | localauthority x509 show, jwt show or wit show lists the IDs.
authority-in-use | The active authority cannot be tainted or revoked. | Prepare and activate another one first.
authority-not-found | The bundle holds no such authority. | localauthority x509 show, jwt show or wit show lists the IDs.
authority-state | The authority is in a state that does not allow this step. | The order is prepare, activate, taint, revoke.
authority-status | The authority is in a state that does not allow this step. | The order is prepare, activate, taint, revoke.
authority-still-in-use | Something that the authority signed is still in use. | Wait until everything is replaced before revoking.
authority-unexpected | The authority ID is not the one that this step is about. | localauthority x509 show, jwt show or wit show lists the IDs.
bearer-missing | Exactly one bearer token is needed. | Send one Authorization header.
bearer-plaintext | A JWT-SVID is not sent without TLS. | Use https.
bearer-wit | A WIT-SVID was sent as a bearer token. | Send it with a proof of possession of its key.
bundle-chain | No chain of statements leads from the authorities that the agent trusts to the server's. | Check that it is the server of the trust domain; if so, give the agent the present bundle: rebootstrap_mode, or a new trust_bundle_path and an empty data_dir.
bundle-delete-mode | The mode of bundle delete is unknown. | Choose restrict, delete or dissociate.
bundle-endpoint-answer | The bundle endpoint's answer cannot be used. | Check the URL with the other trust domain.
bundle-endpoint-bootstrap | There is no bundle yet to verify the endpoint with. | Set one with bundle set, or give it to federation create.
bundle-endpoint-certificate | The certificate of the bundle endpoint cannot be used. | See the paths of its profile.
bundle-endpoint-identity | The bundle endpoint is not who it should be. | Check its SPIFFE ID and bundle with the other trust domain.
bundle-endpoint-unreachable | The bundle endpoint cannot be reached. | Check URL and network.
bundle-endpoint-url | The URL of the bundle endpoint cannot be used. | Write it as https://host/path, without user or password.
bundle-format | The bundle format is unknown. | Choose pem or spiffe.
bundle-in-use | Entries federate with the bundle's trust domain. | Delete with -mode dissociate or -mode delete, or change the entries first.
bundle-key | A key of the bundle cannot be used. | Ask the other trust domain for its current bundle.
bundle-link | What an authority is said to have said of the next bundle is not believed. | Nothing: the agent looks for another way; its log has the reason.
bundle-link-key | An authority that goes cannot say which bundle comes next: its key has been replaced already. | Nothing: what it said before stays.
bundle-malformed | The bundle cannot be read. | Check file and format: PEM certificates, or a SPIFFE bundle document.
bundle-missing | There is no bundle of the trust domain. | Set one with bundle set, or wait for the first update.
bundle-not-found | No bundle of this trust domain is held. | bundle list shows them.
bundle-refused | The server refused the bundle, or its deletion. | The message has the reason.
bundle-too-large | The bundle would be larger than a message may be. | Revoke authorities that are no longer needed.
bundle-unusable | The server's bundle is empty or names another trust domain. | Check trust_domain on both sides.
ca-bundle-empty | The file of CA certificates has none. | Put the CA certificates there in PEM form.
certificate-expired | The certificate has expired. | Renew it, and compare the clocks of both machines.
certificate-lint | A certificate would break the SPIFFE profile and is not signed. | This is a fault of the program or of an upstream authority: see the server's log.
certificate-not-yet-valid | The certificate is not valid yet. | Compare the clocks of both machines.
certificate-revoked | The certificate is on its issuer's revocation list. | Get a new one.
certificate-signature | A certificate's signature is wrong. | Check that the bundle is that of the certificate's trust domain.
certificate-too-large | The certificate is larger than is read. | Make one with fewer names.
chain-too-long | The certificate chain is longer than is accepted. | Send leaf and intermediates only.
content-digest | The Content-Digest is missing, weak, or not that of the body. | Send one of the body as it goes out; see what changes it on the way.
crl-size | The revocation list is larger than is read. | Publish a smaller one.
csr-signature | The certificate request's signature is wrong. | Make the request again with the matching key.
csr-too-large | The certificate request is larger than 16 KiB. | Make one with fewer names.
dns-name | The DNS name is malformed. | Use letters, digits and dashes; a wildcard only as the first label.
dns-name-overlap | A DNS name is given twice, or covered by a wildcard. | Leave one out.
empty-chain | There is no certificate. | Send the certificate and its intermediates.
ext-key-usage | The certificate may not be used for TLS. | It is no X.509-SVID: see who issued it.
foreign-trust-domain | The identity is of another trust domain. | Check the SPIFFE ID.
header-missing | A header is missing. | Send the token and its proof.
header-repeated | A header came more than once. | Send it once.
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
key-file | The key file cannot be read or written. | Check its owner and mode, and restore it when it is damaged.
key-id-missing | A key has no ID. | Give it one.
key-id-taken | The key ID belongs to another key. | Choose another ID.
key-id-too-long | A key ID is longer than any reader takes. | Choose a shorter ID.
key-type | The key type does not fit. | The message names those that do.
leaf-crl-sign | The leaf may sign revocation lists. | It is no X.509-SVID: see who issued it.
leaf-is-ca | The leaf is a certificate authority. | It is no X.509-SVID: see who issued it.
leaf-key-cert-sign | The leaf may sign certificates. | It is no X.509-SVID: see who issued it.
leaf-no-digital-signature | The leaf may not sign. | It is no X.509-SVID: see who issued it.
leeway | The leeway is out of range. | Choose 0 to 120 seconds.
missing-key-cert-sign | An authority may not sign certificates. | Replace it in the bundle.
name-constraint | A certificate breaks a name constraint of its issuer. | Ask the issuer for a suitable authority.
no-bundle | There is no bundle of the trust domain. | Federate with it: an entry's federatesWith, and bundle set.
no-identity-issued | No entry matches the calling process. | Create an entry whose selectors it has, under an agent that attested.
no-path | The SPIFFE ID has no path. | It is no workload's: see who issued it.
no-such-hint | No identity has the hint. | See the hints of the entries.
no-upstream-authority | The server has no upstream authority. | This goes with a server that has one only.
no-uri-san | The certificate has no SPIFFE ID. | It is no X.509-SVID: see who issued it.
not-a-ca | A certificate of the chain is no authority. | Send leaf and intermediates only.
path-length | The chain is longer than an authority allows. | Ask the issuer for a suitable authority.
pem-malformed | The PEM text is malformed. | Check that the file is whole.
pkcs11 | The PKCS#11 token refused a step. | The message has its return value; see the token's log.
pkcs11-key-gone | A key is no longer on the PKCS#11 token. | Restore it, or let the server make new authorities.
pkcs11-module | The PKCS#11 module cannot be loaded. | See the path of the module, and its own configuration.
pkcs11-token | The PKCS#11 token cannot be used. | See its label and PIN in the configuration.
private-key-malformed | The private key is malformed. | Give a PKCS#8 key.
profile-not-offered | The agent or server does not offer this kind of SVID. | Switch it on, or use another kind.
proof-alg | The proof's algorithm does not go with the key. | Sign with the key of the WIT-SVID.
proof-aud | The proof is for another audience. | Make one for the service that is called.
proof-created | The proof was made in the future. | Compare the clocks of both machines.
proof-exp | The proof has no expiry. | Make one for each request.
proof-expired | The proof has expired. | Make one for each request, and compare the clocks.
proof-jti | The proof has no identifier, or one of more than 256 characters. | Give each proof its own jti.
proof-lifetime | The proof lives longer than is accepted. | Make one for each request.
proof-oth | The proof does not cover another token of the request. | Make one over all tokens that are sent.
proof-replayed | The proof was used before. | Make one for each request.
proof-signature | The proof's signature is wrong. | Sign with the key of the WIT-SVID.
proof-typ | The proof's type is wrong. | Send a workload proof token.
proof-wth | The proof is for another WIT-SVID. | Make one with the token that is sent.
public-key | The public key is weak or of an unknown type. | Use P-256, P-384, or RSA of 2048 bits or more.
public-key-malformed | The public key is malformed. | Give a SubjectPublicKeyInfo.
replay-cache-full | Too many proofs are remembered. | Try again in a moment, or give the cache more room.
response-nonce | The answer is to another request. | Do not use it: somebody on the way may have replaced it.
response-signing | The server does not sign its answers, and the request asks for it. | Sign them, or do not ask.
response-unsigned | The answer had to be signed and is not. | Do not use it: somebody on the way may have replaced it.
sds-not-authorized | The workload has no such identity. | Create an entry whose selectors it has.
sds-too-many-names | Too many secrets are asked for. | Ask for fewer.
sds-type-unknown | The type of resource is not served. | Ask for secrets.
sds-validator-needed | Several bundles need Envoy's SPIFFE validator. | Use an Envoy that has it.
several-uri-sans | The certificate has several URIs. | It is no X.509-SVID: see who issued it.
signature-components | The signature covers something that is missing, unknown or named twice. | Cover what the message has.
signature-coverage | The signature does not cover everything that it has to. | Sign with the library, or as the draft says.
signature-missing | The message has no signature that counts. | Label it wimse when there are several.
signature-parameters | A parameter of the signature is missing, malformed or not allowed. | Sign with the library, or as the draft says.
signing-algorithm | The signing algorithm is unknown. | The message names those that are known.
signing-busy | Too many signatures wait. | Try again in a moment.
spiffe-id-empty | The SPIFFE ID is empty. | Write it as spiffe://trust-domain/path.
spiffe-id-invalid | The SPIFFE ID is malformed. | Write it as spiffe://trust-domain/path.
spiffe-id-missing | The request names no SPIFFE ID. | Add it.
spiffe-id-path | The path of the SPIFFE ID is malformed. | Use segments of letters, digits, dots, dashes and underscores.
spiffe-id-role | The SPIFFE ID has another role than is needed. | The message says which.
spiffe-id-scheme | The SPIFFE ID does not begin with spiffe://. | Write it as spiffe://trust-domain/path.
spiffe-id-too-long | The SPIFFE ID is longer than 2048 bytes. | Choose a shorter path.
structured-field | A header is no structured field. | Write it as RFC 8941 says.
svid-chain-empty | The server's answer has no certificate. | See the server's log.
svid-expired | The SVID has expired and no newer one came. | Check that the agent runs and reaches its server.
svid-id | The SVID names another identity than was asked for. | See the server's log.
svid-key | The SVID is for another key. | See the server's log.
svid-malformed | The SVID cannot be read. | See the server's log.
svid-missing | There is no SVID in the request. | Add -svid.
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
unknown-authority | No authority of the bundle signed the certificate. | Check that the bundle is current.
unknown-critical-extension | A certificate has a critical extension that is not known. | Ask the issuer for one without.
upstream-answer | The upstream authority's answer cannot be used. | The message says why; see its log.
upstream-authority | The upstream authority refused or failed. | The message has its reason.
upstream-files | The files of the upstream authority cannot be used. | See the paths of the disk plugin, and compare the clock with its dates.
upstream-identity | The server has no identity for the upstream server. | Check the Workload API socket of the spire plugin, and the downstream entry.
wit-bearer | A WIT-SVID came without its proof. | Send the proof beside it.
wit-disabled | WIT-SVIDs are switched off. | See the feature flag wit-svid.
wit-key-expired | The WIT key has expired and no new one is active. | A new one is made within seconds; compare the clock.
wit-key-missing | There is no active WIT key. | A new one is made within seconds; see the server's log.
wit-key-not-published | The WIT key is not in the bundle yet. | Wait until the bundle is stored; see the server's log.
wit-key-not-yet-valid | The WIT key is not valid yet. | Compare this machine's clock.
wit-key-tainted | The WIT key is tainted. | A new one is made within seconds.
wit-plaintext | A WIT-SVID does not go without TLS. | Use https.
wit-svid-unavailable | The agent could not get the WIT-SVID. | The message has the server's reason.
x509-ca-expired | The X.509 authority has expired and no new one is active. | A new one is made within seconds; compare the clock.
x509-ca-missing | There is no active X.509 authority. | A new one is made within seconds; see the server's log.
x509-ca-not-published | The X.509 authority is not in the bundle yet. | Wait until the bundle is stored; see the server's log.
x509-ca-not-yet-valid | The X.509 authority is not valid yet. | Compare this machine's clock.
x509-ca-tainted | The X.509 authority is tainted. | A new one is made within seconds.
`;
