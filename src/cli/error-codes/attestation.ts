/** Of attesting nodes and workloads. `code | cause | fix`, by code. */
export const ATTESTATION_CODES = `
access-review | The Kubernetes API server did not say whether a broker may have an object. | Let the agent's service account create subjectaccessreviews.authorization.k8s.io.
accounts-size | The file of user or group names is larger than is read. | Keep local accounts few, or set up workload entries by uid and gid.
agent-path | The node attestor's evidence does not make a valid agent path. | See agent_path_template in the server's configuration.
agent-path-template | The template of agent paths is malformed. | Correct agent_path_template.
attestation-ended-early | The server ended the attestation without an answer. | See the server's log.
attestation-overload | Too many attestations of one user wait. | Let the callers keep one stream open instead of asking again and again.
attestation-pid | No process was named. | Add -pid.
attestation-timeout | The attestation took too long. | Try again; see whether the machine or the platform's API is overloaded.
attestation-unexpected-challenge | The server sent a challenge that this attestor does not have. | Configure the same attestor on both sides.
attestation-unknown | The agent does not remember the process. | See attestation list: only the last callers are kept, in memory.
attestation-used | This evidence has attested an agent before and may do so once only. | Evict that agent, or attest with new evidence.
attestations-private | Only root and the user of the agent may see what was found of callers. | Ask as root.
attestations-request | The question for attestations is malformed. | Give a positive process id and limit.
aws-account-list | The list of AWS accounts cannot be used. | Write account_list_file as a JSON array of account IDs.
aws-api | AWS did not answer the server as it should. | Check the network, and the permissions of the server's role or keys.
aws-credentials | The server has no credentials for AWS. | Give it a role, or set access_key_id and secret_access_key.
aws-iid-evidence | The instance identity document is malformed. | Run matching versions on both sides.
aws-iid-refused | The instance is not accepted. | The message says what does not match; see the aws_iid attestor's configuration.
azure-api | Azure did not answer the server as it should. | Check the network, and the roles of the server's application or identity.
azure-credentials | The server's credentials for Azure cannot be used. | See the tenant's token_path.
azure-imds-refused | The attested document or its machine is not accepted. | The message says what does not match; see the azure_imds attestor's configuration.
azure-metadata | The metadata service of Azure did not answer as it should. | See whether the program runs on a machine of Azure, and whether that has a managed identity.
azure-msi-evidence | The managed identity's token is malformed. | Run matching versions on both sides.
azure-msi-refused | The managed identity's token or its machine is not accepted. | The message says what does not match; see the azure_msi attestor's configuration.
azure-trust-bundle | The file of Azure's further roots cannot be used. | Put certificates of authorities alone into trust_bundle_path.
caller-changed | The calling process went away or became another while it was attested. | Call again.
caller-unknown | The calling process could not be attested. | See the agent's log for the attestor and its reason.
cgroup-malformed | The control groups of a process cannot be read. | See which runtime made the container.
cms-malformed | A signed message cannot be read. | Run matching versions on both sides.
cms-signature | The signature of a message is not accepted. | See who signed it.
container-ambiguous | A process seems to be in several containers. | See the workload attestor's configuration of control groups.
container-nested | The process is in a container inside another one that the engine knows. | Let it ask the agent of the inner engine, or none.
container-unknown | The container of the process is not known to the engine. | Check that the agent talks to the engine that made it.
dbus-malformed | D-Bus answered something that cannot be read. | See the agent's log.
dbus-unavailable | D-Bus cannot be reached. | Check the system bus socket, or leave the systemd attestor out.
digest-changed | The executable changed while it was read. | Start the workload again.
digest-not-a-file | The executable is not a regular file. | Run the workload from a file.
digest-size | The executable is larger than workload_size_limit. | Raise the limit, or do without its digest.
digest-time | Reading the executable took too long. | Set a workload_size_limit.
ec2-metadata | The metadata service of EC2 did not answer as it should. | See whether the program runs on an EC2 instance that lets it use the service, and ec2_metadata_endpoint.
engine-refused | The container engine cannot be used. | Check its socket and the agent's permission.
evidence-malformed | The attestor's evidence cannot be read. | Run matching versions on both sides.
gcp-api | Google did not answer the server as it should. | Check the network, and the roles of the server's service account.
gcp-credentials | The server has no credentials of Google. | Set service_account_file, or run the server under a service account.
gcp-iit-evidence | The instance's identity token is malformed. | Run matching versions on both sides.
gcp-iit-refused | The instance is not accepted. | The message says what does not match; see the gcp_iit attestor's configuration.
gcp-metadata | The metadata service of Google Cloud did not answer as it should. | See whether the program runs on a Compute Engine instance, and identity_token_host.
http-challenge-evidence | The http_challenge evidence is malformed. | Check hostname and agent name of the attestor.
http-challenge-listen | The port of the http_challenge attestor cannot be opened. | Free the port, or choose another.
image-name | A container's image cannot be verified by its name. | Run images by digest from a registry, or list it in skipped_images.
image-signature | A container's image is not signed as it must be. | Sign it with cosign, allow its signer in allowed_identities, or list the image in skipped_images.
image-signer | Who signed an image cannot be believed. | See trusted_root_path, and whether Fulcio's certificate log is needed (ignore_sct).
image-transparency | An image's signature is not in the transparency log as it must be. | Sign it with the transparency log, or see rekor_url and ignore_tlog.
join-token-characters | The join token has characters that are not allowed. | Use letters, numbers, dots, dashes and underscores.
join-token-exists | The join token exists. | Leave it out, and one is made.
join-token-expired | The join token has expired. | Make a new one with token generate.
join-token-missing | No join token was given. | Add -joinToken; token generate makes one.
join-token-ttl | The join token has no lifetime. | Give it one of a second or more, with -ttl.
join-token-used | The join token is unknown or was used. | Make a new one with token generate: each is good once.
k8s-psat-evidence | The service account token is malformed. | Project a token into the agent's pod.
k8s-psat-refused | The service account, cluster or pod is not accepted. | See the clusters of the k8s_psat attestor.
k8s-psat-token | The service account token cannot be read. | See token_path, and the agent's pod.
kube-api | The Kubernetes API did not answer as it should. | Check address, credentials and role of the server.
kube-config | The Kubernetes configuration cannot be used. | See kube_config_file.
kubelet-credentials | The kubelet's credentials cannot be read. | See token and certificate paths of the k8s attestor.
kubelet-disabled | The kubelet is needed, and switched off. | See the k8s attestor's configuration.
kubelet-refused | The kubelet refused the agent. | Let the agent's service account get nodes/pods, or nodes/proxy before Kubernetes 1.33.
kubelet-unavailable | The kubelet cannot be reached. | Check port and network of the node.
kubernetes-api | The Kubernetes API server did not answer, or refused. | Read the message; check the roles of the agent's service account.
kubernetes-gone | The API server does not remember the version of a list that was asked for. | Ask again.
namespace-labels | The labels of a namespace cannot be read. | Give the agent the right to read namespaces.
node-attestor-unknown | The server does not have this node attestor. | Configure it on the server, or another one on the agent.
node-selectors | A node has more selectors than are kept. | See what its certificate, or its event log, says.
node-serial | A node has no serial number. | Attest it again.
not-reattestable | The agent cannot attest again with this method. | Evict it and give it a new join token.
object-access-denied | The cluster, or the k8s attestor's broker block, does not let this broker have the object that it refers to. | Name the broker in experimental.broker.brokers of the attestor, and let its SPIFFE ID, as a user, impersonate-via-spire the resource.
path-lookup | The path of the executable cannot be used. | Run the workload from a plain path.
peer-changed | The calling process changed while it connected. | Call again.
peer-credentials | The kernel did not tell who calls. | Call from the same machine on a Unix socket.
peer-gone | The calling process has ended. | Call again.
peer-not-visible | The calling process is not visible to the agent. | Run the agent in the host's PID namespace.
peer-user-unknown | The calling process's user or group has no number in the agent's user namespace. | Run the agent in the host's user namespace, or in that of its callers.
proc-size | A file of /proc is larger than is read. | See what the process is.
proc-status | The process's status cannot be read. | Run the agent with access to /proc.
process-gone | The process has ended. | Call again.
registry-content | A registry sent other bytes than it was asked for. | Check the registry and what stands before it.
registry-logins | A file with logins of registries cannot be read. | See ~/.docker/config.json, or what DOCKER_CONFIG or REGISTRY_AUTH_FILE names.
registry-refused | A registry did not give an image's signatures. | See registry_credentials of the sigstore block, and the registry.
ssh-malformed | SSH data is malformed. | Check the host key and its certificate.
ssh-private-key | The SSH host key cannot be used. | See host_key_path.
sshpop-keypair | The SSH host certificate cannot be used. | See host_cert_path and host_key_path.
sshpop-refused | The SSH host certificate is not accepted. | See cert_authorities of the sshpop attestor.
systemd-unit | The systemd unit of the process cannot be found. | Check that systemd runs, and the agent's access to it.
tpm-devid-evidence | The tpm_devid evidence is malformed. | Run matching versions on both sides.
tpm-devid-files | The DevID files cannot be used. | See the paths of the tpm_devid attestor.
tpm-devid-refused | The DevID is not accepted. | See devid_ca_path and endorsement_ca_path.
tpm-folder | The folder of the TPM's files cannot be used. | Name an empty folder that you may write.
tpm-malformed | The TPM's evidence is malformed. | Run matching versions on both sides.
tpm-no-endorsement | The TPM has no endorsement certificate. | Provision one, or use another attestor.
tpm-no-simulator | There is no TPM simulator. | Install swtpm.
tpm-open | The TPM cannot be opened. | Check the device and the agent's permission.
tpm-pcrs | The selection of PCRs cannot be used. | See the tpm attestor's configuration.
tpm-refused | The TPM's evidence is not accepted. | The message says what does not match; see the tpm attestor's configuration.
tpm-refused-command | The TPM refused a command. | See the agent's log; the TPM may be locked or of another type.
transparency-log | Rekor did not answer as it should. | See rekor_url and the network.
trusted-root | Sigstore's trusted root cannot be had, or used. | See tuf_mirror_url and the network, or trusted_root_path.
workload-attestation-failed | The calling process could not be attested. | See the agent's log for the attestor and its reason.
x509pop-address | The client's address does not match its certificate. | See the x509pop attestor's address check.
x509pop-chain | The certificate is not accepted. | See ca_bundle_path, and the certificate's issuer.
x509pop-evidence | The x509pop evidence is malformed. | Run matching versions on both sides.
x509pop-key-type | The key type is not accepted. | Use RSA, P-256 or P-384.
x509pop-key-usage | The certificate may not sign. | Ask for one with digital signature.
x509pop-keypair | Certificate and key cannot be used. | See certificate_path and private_key_path.
x509pop-proof | The proof of possession is wrong. | Check that key and certificate belong together.
x509pop-workload-api | The SVID for x509pop cannot be fetched. | Check the Workload API socket.
`;
