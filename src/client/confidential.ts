const ENCRYPTED: ReadonlySet<string> = new Set(["https:", "wss:", "grpcs:", "unix:"]);
const LOOPBACK = /^(localhost|127(\.\d{1,3}){3}|\[::1\])$/;

/** True when nobody on the way can read what is sent to this address. JWT-SVID, section 7.3; WIT-SVID, section 7.3. */
export function isConfidential({ protocol, hostname }: URL): boolean {
  return ENCRYPTED.has(protocol) || LOOPBACK.test(hostname);
}
