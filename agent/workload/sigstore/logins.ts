import { readFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { Fault, messageOf } from "../../../src/runtime/fault.ts";
import { objectOf, textOf } from "../pods.ts";
import { registryHost } from "./image.ts";
import type { RegistryCredentials } from "./registry.ts";

/** Where `docker login` and `podman login` leave what they were told, in the order of SPIRE's. */
export function loginFiles(env: NodeJS.ProcessEnv = process.env): readonly string[] {
  const { DOCKER_CONFIG: docker, REGISTRY_AUTH_FILE: named, XDG_RUNTIME_DIR: runtime, XDG_CONFIG_HOME: config } = env;
  return [
    join(docker || join(homedir(), ".docker"), "config.json"),
    ...(named ? [named] : []),
    ...(runtime ? [join(runtime, "containers/auth.json")] : []),
    join(config || join(homedir(), ".config"), "containers/auth.json"),
  ];
}

/**
 * The login for a registry in the first file that is there; programs that keep credentials elsewhere are not asked.
 * Throws `unavailable` for a file that cannot be read.
 */
export async function loginOf(registry: string, files: readonly string[]): Promise<RegistryCredentials | undefined> {
  for (const path of files) {
    const logins = await read(path);
    if (logins === undefined) continue;
    const [, login] = Object.entries(logins).find(([name]) => registryHost(name) === registry) ?? [];
    return login === undefined ? undefined : credentialsOf(objectOf(login));
  }
  return undefined;
}

type Json = Readonly<Record<string, unknown>>;

async function read(path: string): Promise<Json | undefined> {
  try {
    return objectOf(objectOf(JSON.parse(await readFile(path, "utf8")))["auths"]);
  } catch (error) {
    if (error instanceof Error && "code" in error && (error.code === "ENOENT" || error.code === "ENOTDIR"))
      return undefined;
    // A syntax error's message quotes what it stumbled over, which may be a password.
    const reason = error instanceof SyntaxError ? "it is not JSON" : messageOf(error);
    throw new Fault("unavailable", `the logins in ${path} cannot be read: ${reason}`, { code: "registry-logins" });
  }
}

/** As fields, or as Base64 of both with a colon between. */
function credentialsOf(login: Json): RegistryCredentials | undefined {
  const [username = "", ...rest] = Buffer.from(textOf(login["auth"]), "base64").toString("utf8").split(":");
  const found = {
    username: textOf(login["username"]) || username,
    password: textOf(login["password"]) || rest.join(":").replace(/\0+$/, ""),
  };
  return found.username === "" || found.password === "" ? undefined : found;
}
