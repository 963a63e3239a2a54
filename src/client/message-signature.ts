import { randomBytes } from "node:crypto";
import { jwsHolds, jwsSignerOf } from "../crypto/jws.ts";
import { Fault } from "../runtime/fault.ts";
import { numericDate } from "../spiffe/token.ts";
import { checkContentDigest, contentDigest } from "./content-digest.ts";
import { type RequestLine, type SignedMessage, signatureBase } from "./signature-base.ts";
import {
  type BareItem,
  type InnerList,
  type Item,
  isInnerList,
  type Parameters,
  parseDictionary,
  serializeInnerList,
  serializeItem,
} from "./structured-fields.ts";
import type { WitSvid } from "./wit.ts";
import {
  checkAudience,
  checkCreation,
  checkExpiry,
  checkNoBearer,
  checkReceiving,
  checkSending,
  checkUnused,
  DEFAULT_LIFETIME_MS,
  lowerCased,
  type ProvenWorkload,
  type ReceivedHeaders,
  type ReceivedRequest,
  refused,
  TRANSACTION_HEADER,
  type TrustContext,
  targetOf,
  type VerifyOptions,
  valuesOf,
  WIT_HEADER,
  witOf,
} from "./wit-request.ts";

const LABEL = "wimse";
const TAG = "wimse-workload-to-workload";
const MAX_NONCE_CHARACTERS = 256;
/** Of what a message has of these, everything is covered. */
const REQUEST_FIELDS = ["content-type", "content-digest", "authorization", TRANSACTION_HEADER, WIT_HEADER] as const;
const RESPONSE_FIELDS = ["content-type", "content-digest", WIT_HEADER] as const;

type Signing = Pick<WitSvid, "token" | "privateKey" | "algorithm">;
type Body = Uint8Array | string;

interface SignOptions {
  readonly svid: Signing;
  readonly at: Date;
  /** What the message has already, whose values go out as they are here. */
  readonly headers?: Readonly<Record<string, string>>;
  /** Whole, byte for byte as it goes out. */
  readonly body?: Body;
  /** How long the signature counts, at most five minutes. Default: one minute. */
  readonly lifetimeMs?: number;
  /** Further headers to cover. */
  readonly cover?: readonly string[];
}

export interface SignRequestOptions extends SignOptions {
  readonly method: string;
  readonly target: string | URL;
  /** The address by which the server knows itself. Default: the target without its query. */
  readonly audience?: string;
  /** Take no answer that is not signed. */
  readonly signedResponse?: boolean;
  /** Send the token where others can read it. */
  readonly allowPlaintext?: boolean;
}

/** A request that is ready, and what its answer is checked by. */
export interface SignedRequest extends RequestLine {
  /** To add to those that were given. */
  readonly headers: Readonly<Record<string, string>>;
  readonly nonce: string;
  readonly signedResponse: boolean;
}

/**
 * Signs a request with a WIT-SVID's key: method, target, body, and the headers that the draft names. Throws `invalid`
 * for an address that others could read the token at.
 */
export async function signRequest(options: SignRequestOptions): Promise<SignedRequest> {
  const { method, target, signedResponse = false, lifetimeMs = DEFAULT_LIFETIME_MS } = options;
  const url = new URL(target);
  checkSending(url, { lifetimeMs, allowPlaintext: options.allowPlaintext ?? false });
  const requestTarget = `${url.pathname}${url.search}`;
  const { headers, nonce } = await signed(options, { request: { method, requestTarget } }, [
    ["wimse-aud", options.audience ?? targetOf(url)],
    ...(signedResponse ? [["wimse-sign-response", true] as const] : []),
  ]);
  return Object.freeze({ method, requestTarget, headers, nonce, signedResponse });
}

export interface ReceivedSignedRequest extends ReceivedRequest, RequestLine {
  /** Whole, byte for byte as it came. */
  readonly body?: Uint8Array;
}

export interface VerifyRequestOptions extends VerifyOptions {
  /** This server signs its answers when asked to. Otherwise a request that asks for that is refused: HTTP 501. */
  readonly signsResponses?: boolean;
}

/** Who sent a request, and what its answer is signed with. */
export interface VerifiedRequest extends ProvenWorkload, RequestLine {
  readonly nonce: string;
  /** The answer has to be signed, with `signResponse`. */
  readonly signedResponse: boolean;
}

/**
 * Who sent the request. The WIT-SVID is checked first, then the signature under its key, and that it covers everything
 * that the draft names. Throws `invalid`, which is HTTP 400, and `unimplemented` for an answer that would have to be
 * signed here and is not: `proofRefusal` says how to answer.
 */
export async function verifyRequest(
  received: ReceivedSignedRequest,
  context: VerifyRequestOptions & TrustContext,
): Promise<VerifiedRequest> {
  checkReceiving(received, context);
  const { method, requestTarget, headers } = received;
  const message = { headers, request: { method, requestTarget } };
  const { workload, parameters, nonce } = await verified(message, REQUEST, { ...context, body: received.body });
  checkAudience(parameters.get("wimse-aud"), received, context);
  const signedResponse = parameters.get("wimse-sign-response") === true;
  if (signedResponse && context.signsResponses !== true)
    throw new Fault("unimplemented", "this server does not sign its answers", { code: "response-signing" });
  checkUnused(`${workload.id} signature ${nonce}`, Number(parameters.get("expires")), context);
  return Object.freeze({ ...workload, method, requestTarget, nonce, signedResponse });
}

export interface SignResponseOptions extends SignOptions {
  readonly status: number;
  readonly request: Pick<VerifiedRequest, "method" | "requestTarget" | "nonce">;
}

/** The headers to add to an answer, so that the client knows who gave it, and to which request. */
export async function signResponse(options: SignResponseOptions): Promise<Readonly<Record<string, string>>> {
  const { status, request } = options;
  const { headers } = await signed(options, { request, status }, [["wimse-req-nonce", request.nonce]]);
  return headers;
}

export interface ReceivedResponse {
  readonly status: number;
  readonly headers: ReceivedHeaders;
  /** Whole, byte for byte as it came. */
  readonly body?: Uint8Array;
}

export interface VerifyResponseOptions extends Pick<VerifyOptions, "replays" | "maxLifetimeMs"> {
  /** What the answer is to. */
  readonly request: Pick<SignedRequest, "method" | "requestTarget" | "nonce" | "signedResponse">;
}

/**
 * Who gave the answer; undefined for one that is not signed and did not have to be. Whether that is who should have is the
 * caller's to decide. Throws `invalid`: such an answer is not used.
 */
export async function verifyResponse(
  response: ReceivedResponse,
  context: VerifyResponseOptions & TrustContext,
): Promise<ProvenWorkload | undefined> {
  const { status, headers, body } = response;
  const { request } = context;
  const isSigned = ["signature", "signature-input"].some((name) => valuesOf(headers, name).length > 0);
  if (!isSigned && !request.signedResponse) return undefined;
  if (!isSigned) throw refused("the answer is not signed", "response-unsigned");
  const { workload, parameters, nonce } = await verified({ headers, request, status }, RESPONSE, { ...context, body });
  const answered = parameters.get("wimse-req-nonce");
  if (answered !== request.nonce && (answered !== undefined || request.signedResponse))
    throw refused("the answer is to another request", "response-nonce");
  checkUnused(`${workload.id} signature ${nonce}`, Number(parameters.get("expires")), context);
  return workload;
}

/** What the draft says of one kind of message. */
interface Profile {
  readonly components: readonly string[];
  readonly fields: readonly string[];
  /** Besides those that every signature has, and whether they have to be there. */
  readonly parameters: Readonly<Record<string, { readonly type: "string" | "boolean"; readonly needed: boolean }>>;
}

const REQUEST: Profile = {
  components: ['"@method"', '"@request-target"'],
  fields: REQUEST_FIELDS,
  parameters: {
    "wimse-aud": { type: "string", needed: true },
    "wimse-sign-response": { type: "boolean", needed: false },
  },
};
const RESPONSE: Profile = {
  components: ['"@status"', '"@method";req', '"@request-target";req'],
  fields: RESPONSE_FIELDS,
  parameters: { "wimse-req-nonce": { type: "string", needed: false } },
};

async function signed(
  { svid, at, headers = {}, body = "", lifetimeMs = DEFAULT_LIFETIME_MS, cover = [] }: SignOptions,
  message: Omit<SignedMessage, "headers">,
  more: readonly (readonly [string, BareItem])[],
): Promise<{ readonly headers: Readonly<Record<string, string>>; readonly nonce: string }> {
  const bytes = Buffer.from(body as Uint8Array);
  const added = { [WIT_HEADER]: svid.token, ...(bytes.length === 0 ? {} : { "content-digest": contentDigest(bytes) }) };
  const all: Readonly<Record<string, string>> = { ...lowerCased(headers), ...added };
  checkNoBearer(all, svid.token);
  const profile = message.status === undefined ? REQUEST : RESPONSE;
  const fields = [
    ...profile.fields.filter((name) => all[name] !== undefined),
    ...cover.map((name) => name.toLowerCase()),
  ];
  const nonce = randomBytes(16).toString("base64url");
  const covered: InnerList = {
    items: [...profile.components.map(component), ...[...new Set(fields)].map((name) => component(`"${name}"`))],
    parameters: new Map<string, BareItem>([
      ["created", numericDate(at)],
      ["expires", numericDate(new Date(at.getTime() + lifetimeMs))],
      ["nonce", nonce],
      ["tag", TAG],
      ...more,
    ]),
  };
  const base = signatureBase(covered, { ...message, headers: all });
  const signature = await jwsSignerOf(svid.algorithm, svid.privateKey).sign(base);
  return {
    nonce,
    headers: {
      ...added,
      "signature-input": `${LABEL}=${serializeInnerList(covered)}`,
      signature: `${LABEL}=${serializeItem({ value: signature, parameters: new Map() })}`,
    },
  };
}

function component(text: string): Item {
  const [name = "", request] = text.split(";");
  return { value: name.slice(1, -1), parameters: new Map(request === undefined ? [] : [[request, true]]) };
}

type Verifying = TrustContext & Pick<VerifyOptions, "maxLifetimeMs"> & { readonly body: Uint8Array | undefined };

/** The order is the draft's: the token, then the signature under its key, and nothing of the message before both hold. */
async function verified(message: SignedMessage, profile: Profile, context: Verifying) {
  const { covered, signature } = signatureOf(message.headers);
  const wit = await witOf(message.headers, context);
  checkParameters(covered.parameters, profile);
  const base = signatureBase(covered, message);
  const { key, algorithm } = wit.confirmation;
  if (!(await jwsHolds({ algorithm, signed: base, signature }, key)))
    throw refused("the signature is not that of the token's key", "proof-signature");
  checkCovered(covered, message, profile);
  checkTimes(covered.parameters, context);
  checkBody(message.headers, context.body ?? new Uint8Array());
  const workload: ProvenWorkload = Object.freeze({ id: wit.id, claims: wit.claims });
  return { workload, parameters: covered.parameters, nonce: String(covered.parameters.get("nonce")) };
}

/** The one signature, whatever its label, or the one with the draft's label among several. */
function signatureOf(headers: ReceivedHeaders): { readonly covered: InnerList; readonly signature: Uint8Array } {
  const [inputs, signatures] = ["signature-input", "signature"].map((name) => {
    const values = valuesOf(headers, name);
    if (values.length === 0) throw refused(`the message has no ${name} header`, "header-missing");
    return parseDictionary(values.join(", "));
  });
  const label = inputs?.size === 1 ? [...inputs.keys()][0] : LABEL;
  const covered = inputs?.get(label ?? "");
  const signature = signatures?.get(label ?? "");
  if (covered === undefined || !isInnerList(covered) || signature === undefined || isInnerList(signature))
    throw refused(`the message has no signature with the label ${LABEL}`, "signature-missing");
  if (!(signature.value instanceof Uint8Array)) throw refused("the signature is no byte sequence", "signature-missing");
  return { covered, signature: signature.value };
}

/** What is not known here may narrow what the signature is for, so it is refused. */
function checkParameters(parameters: Parameters, profile: Profile): void {
  for (const name of ["created", "expires"])
    if (typeof parameters.get(name) !== "number") throw wrongParameter(`has no ${name}`);
  const nonce = parameters.get("nonce");
  if (typeof nonce !== "string" || nonce === "" || nonce.length > MAX_NONCE_CHARACTERS)
    throw wrongParameter("has no nonce of at most 256 characters");
  if (parameters.get("tag") !== TAG) throw wrongParameter(`has another tag than ${TAG}`);
  for (const [name, { type, needed }] of Object.entries(profile.parameters)) {
    const value = parameters.get(name);
    if (value === undefined ? needed : typeof value !== type) throw wrongParameter(`has no ${name}`);
  }
  const known = new Set(["created", "expires", "nonce", "tag", ...Object.keys(profile.parameters)]);
  for (const name of parameters.keys())
    if (!known.has(name)) throw wrongParameter(`has ${JSON.stringify(name.slice(0, 64))}, which is not allowed`);
}

function checkCovered(covered: InnerList, { headers }: SignedMessage, { components, fields }: Profile): void {
  const names = new Set(covered.items.map(serializeItem));
  const present = fields.filter((name) => valuesOf(headers, name).length > 0).map((name) => `"${name}"`);
  const missing = [...components, ...present].find((name) => !names.has(name));
  if (missing !== undefined) throw refused(`the signature does not cover ${missing}`, "signature-coverage");
}

function checkTimes(parameters: Parameters, context: Verifying): void {
  const expires = Number(parameters.get("expires"));
  checkExpiry(expires, context);
  checkCreation(Number(parameters.get("created")), expires, context.at);
}

function checkBody(headers: ReceivedHeaders, body: Uint8Array): void {
  const digests = valuesOf(headers, "content-digest");
  if (digests.length > 0) checkContentDigest(digests.join(", "), body);
  else if (body.length > 0) throw refused("the message has a body and no Content-Digest", "content-digest");
}

function wrongParameter(reason: string): Fault {
  return refused(`the signature ${reason}`, "signature-parameters");
}
