import type {
  AgentApi,
  BundleApi,
  ContinuityApi,
  EntryApi,
  HealthApi,
  LocalAuthorityApi,
  MethodsOf,
  PushApi,
  QuarantineApi,
  ReflectionAlphaApi,
  ReflectionApi,
  ServerDebugApi,
  ServerLoggerApi,
  SvidApi,
  TrustDomainApi,
} from "../../src/rpc/protos.ts";

/**
 * Who may call: anyone; a process that may open the admin socket; the holder of an admin SVID; of a downstream SVID; an
 * attested agent. Nobody else: a method is denied to every class that its row does not name.
 */
export type CallerClass = "any" | "local" | "admin" | "downstream" | "agent";

/** Buckets by source IP. Methods with the same bucket share it. */
export const BUCKETS = {
  attestation: { perSecond: 1, switchedBy: "attestation" },
  x509Signing: { perSecond: 500, switchedBy: "signing" },
  jwtSigning: { perSecond: 500, switchedBy: "signing" },
  witSigning: { perSecond: 500, switchedBy: "signing" },
  keyPublishing: { perSecond: 500, switchedBy: undefined },
  postStatus: { perSecond: 10, switchedBy: undefined },
} as const satisfies Record<
  string,
  { readonly perSecond: number; readonly switchedBy: "attestation" | "signing" | undefined }
>;

export type BucketName = keyof typeof BUCKETS;

export interface Limit {
  readonly bucket: BucketName;
  /** What counts: the call, before its handler runs; or each item of the request, which the handler charges. */
  readonly per: "call" | "item";
  /** Completes "rejecting request due to …". */
  readonly words: string;
}

export interface Rule {
  readonly allow: readonly CallerClass[];
  /** An agent in quarantine may call it too: it answers as for an agent without entries, or keeps its own SVID alive. */
  readonly inQuarantine?: true;
  /** Gives out what was signed: the caller has to have its right still when that is done. */
  readonly signs?: true;
  readonly limit?: Limit;
}

/** One row for each method of a service: a method without a row does not compile. */
export type Rules<S> = Readonly<Record<MethodsOf<S>, Rule>>;

const ANY: Rule = { allow: ["any"] };
const LOCAL: Rule = { allow: ["local"] };
const ADMIN: Rule = { allow: ["local", "admin"] };
const AGENT: Rule = { allow: ["agent"] };
const ANY_AGENT: Rule = { allow: ["agent"], inQuarantine: true };

function limited(rule: Rule, bucket: BucketName, words: string, per: Limit["per"] = "call"): Rule {
  return { ...rule, limit: { bucket, per, words } };
}

export const agentRules: Rules<typeof AgentApi> = {
  CountAgents: ADMIN,
  ListAgents: ADMIN,
  GetAgent: ADMIN,
  DeleteAgent: ADMIN,
  BanAgent: ADMIN,
  AttestAgent: limited(ANY, "attestation", "attest agent rate limiting"),
  RenewAgent: limited(ANY_AGENT, "x509Signing", "renew agent rate limiting"),
  CreateJoinToken: ADMIN,
  PostStatus: limited(ANY_AGENT, "postStatus", "post status rate limiting"),
};

export const bundleRules: Rules<typeof BundleApi> = {
  CountBundles: ADMIN,
  GetBundle: ANY,
  AppendBundle: ADMIN,
  PublishJWTAuthority: limited({ allow: ["downstream"] }, "keyPublishing", "key publishing rate limiting"),
  PublishWITAuthority: limited({ allow: ["downstream"] }, "keyPublishing", "key publishing rate limiting"),
  ListFederatedBundles: ADMIN,
  GetFederatedBundle: { allow: ["local", "admin", "agent"] },
  BatchCreateFederatedBundle: ADMIN,
  BatchUpdateFederatedBundle: ADMIN,
  BatchSetFederatedBundle: ADMIN,
  BatchDeleteFederatedBundle: ADMIN,
};

export const entryRules: Rules<typeof EntryApi> = {
  CountEntries: ADMIN,
  ListEntries: ADMIN,
  GetEntry: ADMIN,
  BatchCreateEntry: ADMIN,
  BatchUpdateEntry: ADMIN,
  BatchDeleteEntry: ADMIN,
  GetAuthorizedEntries: ANY_AGENT,
  SyncAuthorizedEntries: ANY_AGENT,
};

export const pushRules: Rules<typeof PushApi> = {
  WatchAuthorizedEntries: ANY_AGENT,
  AwaitEntries: ADMIN,
};

export const continuityRules: Rules<typeof ContinuityApi> = { GetBundleLinks: ANY };

export const quarantineRules: Rules<typeof QuarantineApi> = {
  QuarantineAgent: ADMIN,
  ReleaseAgent: ADMIN,
  ListQuarantinedAgents: ADMIN,
};

const MINT: Rule = { ...ADMIN, signs: true };
const SIGN: Rule = { ...AGENT, signs: true };

export const svidRules: Rules<typeof SvidApi> = {
  MintX509SVID: MINT,
  MintJWTSVID: MINT,
  MintWITSVID: MINT,
  BatchNewX509SVID: limited(SIGN, "x509Signing", "certificate signing rate limiting", "item"),
  NewJWTSVID: limited(SIGN, "jwtSigning", "JWT signing request rate limiting"),
  BatchNewWITSVID: limited(SIGN, "witSigning", "certificate signing rate limiting", "item"),
  NewDownstreamX509CA: limited(
    { allow: ["downstream"], signs: true },
    "x509Signing",
    "downstream CA signing rate limit",
  ),
};

export const trustDomainRules: Rules<typeof TrustDomainApi> = {
  ListFederationRelationships: ADMIN,
  GetFederationRelationship: ADMIN,
  BatchCreateFederationRelationship: ADMIN,
  BatchUpdateFederationRelationship: ADMIN,
  BatchDeleteFederationRelationship: ADMIN,
  RefreshBundle: ADMIN,
};

export const loggerRules: Rules<typeof ServerLoggerApi> = {
  GetLogger: LOCAL,
  SetLogLevel: LOCAL,
  ResetLogLevel: LOCAL,
};

export const debugRules: Rules<typeof ServerDebugApi> = { GetInfo: LOCAL };

/** SPIRE's server has none; here whoever is an administrator may ask what the admin socket serves. */
export const reflectionRules: Rules<typeof ReflectionApi> & Rules<typeof ReflectionAlphaApi> = {
  ServerReflectionInfo: LOCAL,
};

export const localAuthorityRules: Rules<typeof LocalAuthorityApi> = {
  GetX509AuthorityState: ADMIN,
  PrepareX509Authority: ADMIN,
  ActivateX509Authority: ADMIN,
  TaintX509Authority: ADMIN,
  RevokeX509Authority: ADMIN,
  TaintX509UpstreamAuthority: ADMIN,
  RevokeX509UpstreamAuthority: ADMIN,
  GetJWTAuthorityState: ADMIN,
  PrepareJWTAuthority: ADMIN,
  ActivateJWTAuthority: ADMIN,
  TaintJWTAuthority: ADMIN,
  RevokeJWTAuthority: ADMIN,
  GetWITAuthorityState: ADMIN,
  PrepareWITAuthority: ADMIN,
  ActivateWITAuthority: ADMIN,
  TaintWITAuthority: ADMIN,
  RevokeWITAuthority: ADMIN,
};

export const healthRules: Rules<typeof HealthApi> = { Check: LOCAL, List: LOCAL, Watch: LOCAL };
