import { type Key, objectsOf, type Values } from "../../src/runtime/config.ts";
import { block, flag, named, parsed, text, texts } from "../../src/runtime/config-keys.ts";
import type { ConfigValue } from "../../src/runtime/config-value.ts";
import { Fault, messageOf } from "../../src/runtime/fault.ts";
import { filePath } from "../../src/runtime/program-config.ts";

export interface SigstoreConfig {
  /** Whether who signed is among those that may. */
  readonly allows: (signer: { readonly issuer: string; readonly subjects: readonly string[] }) => boolean;
  readonly skippedImages: ReadonlySet<string>;
  readonly rekorUrl: string;
  readonly ignoreSct: boolean;
  readonly ignoreTlog: boolean;
  readonly ignoreAttestations: boolean;
  /** By the registry's name, as written. */
  readonly registryCredentials: ReadonlyMap<string, { readonly username: string; readonly password: string }>;
  readonly trust:
    | { readonly type: "file"; readonly path: string }
    | { readonly type: "tuf"; readonly mirrorUrl: string; readonly rootPath: string | undefined };
}

/** What makes SPIRE take a name for a pattern. */
const PATTERN_SIGNS = /[*+?^${}[\]|()]/;
/** Means something in SPIRE's expressions, and something else or nothing in ours. */
const FOREIGN_SYNTAX = /\\[pPQEAzC]|\[\[:|\(\?[a-zA-Z]/;
/** Of a subject or issuer; no real one comes near. */
const MAX_NAME = 2048;

type Matcher = (name: string) => boolean;

interface Identity {
  readonly issuer: Matcher;
  readonly subjects: readonly Matcher[];
}

/**
 * A name, or a regular expression for a whole name. What is written is always taken for itself too, so that a sign of
 * expressions in a name takes nothing away; a dot is only more than a dot beside such a sign. Throws `invalid`. T-S6.
 */
function matcherOf(spelling: string): Matcher {
  if (!PATTERN_SIGNS.test(spelling)) return (name) => name === spelling;
  const whole = expressionOf(spelling);
  return (name) => name === spelling || (name.length <= MAX_NAME && whole.test(name));
}

function expressionOf(spelling: string): RegExp {
  try {
    if (FOREIGN_SYNTAX.test(spelling)) throw new Error("inline flags and classes of names are not supported");
    // By themselves too, so that a bracket that closes too early is found.
    new RegExp(spelling);
    return new RegExp(`^(?:${spelling})$`);
  } catch (cause) {
    const message = `${JSON.stringify(spelling)} is not a regular expression: ${messageOf(cause)}`;
    throw new Fault("invalid", message, { code: "config-invalid", cause });
  }
}

/** `allowed_identities`: issuers, each with its subjects. */
const identities: Key<readonly Identity[]> = {
  type: "lists of strings by name",
  doc: 'Who may sign: issuers of OpenID tokens, each with a list of subjects, such as `"https://accounts.google.com" = ["ci@example.com"]`. One with any of the signs `*+?^$()[]{}|` is also a regular expression, which must fit the whole name. Default: anybody whom the trusted root vouches for.',
  status: "works",
  read: (value, { reader, path, at }) => {
    const objects = value === undefined ? [] : objectsOf(value);
    if (objects === undefined) reader.fault(at, `${path}: expected issuers such as ${path} { "https://…" = ["…"] }`);
    return (objects ?? [])
      .flatMap(({ entries }) => entries)
      .flatMap((entry) => {
        reader.mark(`${path}.${entry.key}`, entry.at);
        try {
          return [{ issuer: matcherOf(entry.key), subjects: subjectsOf(entry.value).map(matcherOf) }];
        } catch (error) {
          reader.fault(entry.at, `${path}.${entry.key}: ${messageOf(error)}`);
          return [];
        }
      });
  },
};

function subjectsOf(value: ConfigValue): readonly string[] {
  const items = value.kind === "list" ? value.items : [];
  if (items.length > 0 && items.every(({ kind }) => kind === "string"))
    return items.map((item) => (item.kind === "string" ? item.text : ""));
  throw new Fault("invalid", "expected a list of subjects, of which there must be one", { code: "config-invalid" });
}

function httpsUrl(spelling: string): string {
  const url = URL.parse(spelling);
  const isLocal = url?.hostname === "localhost" || url?.hostname === "127.0.0.1" || url?.hostname === "[::1]";
  if (url?.protocol === "https:" || (url?.protocol === "http:" && isLocal)) return spelling;
  throw new Fault("invalid", `${JSON.stringify(spelling)} is not an https:// address`, { code: "config-invalid" });
}

const httpsAddress = parsed("https:// address", httpsUrl);
const REKOR = "https://rekor.sigstore.dev";
/** Sigstore's own repository, whose root the client brings along. */
const TUF_MIRROR = "https://tuf-repo-cdn.sigstore.dev";

const keys = {
  allowed_identities: identities,
  skipped_images: texts({
    doc: "Images that need no signature, and get no selectors of one: as the kubelet names them in imageID, or the engine in RepoDigests.",
  }),
  rekor_url: httpsAddress({
    doc: "Rekor, which is asked about signatures that carry no entry of it.",
    default: REKOR,
  }),
  ignore_sct: flag({ doc: "Believes certificates that no certificate log promised to publish.", default: false }),
  ignore_tlog: flag({
    doc: "Believes signatures without the transparency log, while the signer's certificate is valid.",
    default: false,
  }),
  ignore_attestations: flag({ doc: "Asks for a signature alone, and not for an attestation too.", default: false }),
  registry_credentials: named(
    "Credentials, by the registry's host. Other registries get those of docker login or podman login, where they stand in the file itself.",
    block("Credentials of one registry.", {
      username: text({ doc: "User's name.", default: "" }),
      password: text({ doc: "Password, or token.", default: "" }),
    }),
  ),
  trusted_root_path: filePath({
    doc: "Sigstore's trusted_root.json: whose certificates and logs are believed. Default: by The Update Framework (TUF).",
    own: true,
  }),
  tuf_mirror_url: httpsAddress({
    doc: "TUF repository that publishes trusted_root.json.",
    shown: TUF_MIRROR,
    own: true,
  }),
  tuf_root_path: filePath({
    doc: "That repository's root.json, of any version; needed for another one than Sigstore's.",
    own: true,
  }),
};

/** Undefined when the block is not there: then images need no signature. */
export const sigstore: Key<SigstoreConfig | undefined> = {
  ...block(
    "Selectors by verified signatures of the container's image, in its repository or in the one that COSIGN_REPOSITORY names. A container without one gets no selectors.",
    keys,
  ),
  read: (value, spot) => {
    if (value === undefined) return undefined;
    const values: Values<typeof keys> = block("", keys).read(value, spot);
    const { registry_credentials: credentials } = values;
    for (const [registry, { username, password }] of credentials)
      if (username === "" || password === "")
        spot.reader.warn(spot.at, `${spot.path}.registry_credentials.${registry} needs both username and password`);
    const identities = values.allowed_identities;
    return {
      allows: ({ issuer, subjects }) =>
        identities.length === 0 ||
        identities.some((each) => each.issuer(issuer) && each.subjects.some((matches) => subjects.some(matches))),
      skippedImages: new Set(values.skipped_images),
      rekorUrl: values.rekor_url,
      ignoreSct: values.ignore_sct,
      ignoreTlog: values.ignore_tlog,
      ignoreAttestations: values.ignore_attestations,
      registryCredentials: new Map(
        [...credentials].filter(([, { username, password }]) => username !== "" && password !== ""),
      ),
      trust: trustOf(values, (message) => spot.reader.fault(spot.at, `${spot.path}.${message}`)),
    };
  },
};

function trustOf(
  { trusted_root_path: path, tuf_mirror_url: mirror, tuf_root_path: rootPath }: Values<typeof keys>,
  fault: (message: string) => void,
): SigstoreConfig["trust"] {
  if (path !== undefined) {
    if (mirror !== undefined || rootPath !== undefined)
      fault("trusted_root_path cannot be used with tuf_mirror_url or tuf_root_path");
    return { type: "file", path };
  }
  if (mirror !== undefined && mirror !== TUF_MIRROR && rootPath === undefined)
    fault("tuf_root_path must be set for a tuf_mirror_url of your own");
  return { type: "tuf", mirrorUrl: (mirror ?? TUF_MIRROR).replace(/\/+$/, ""), rootPath };
}
