import { Fault } from "../runtime/fault.ts";

/** Where a program's socket may be named besides `-socketPath`. */
export interface InstanceSocket {
  /** Environment variable of the path; with `_TEMPLATE` behind it, of the template for `-instance`. */
  readonly variable: string;
  readonly defaultPath: string;
  /** What is wrong when `-instance` is given without a template, in SPIRE's words. */
  undefinedText(template: string): string;
}

interface Choice {
  readonly socketPath: string;
  readonly instance: string;
}

/** A flag over `-instance` over the environment over the default. Throws `invalid`. */
export function instanceSocket(
  { variable, defaultPath, undefinedText }: InstanceSocket,
  { socketPath, instance }: Choice,
  env: Readonly<Record<string, string | undefined>>,
): string {
  const name = `${variable}_TEMPLATE`;
  const template = env[name] ?? "";
  if (instance !== "" && template === "") {
    throw refused(undefinedText(name), `for example ${name}=/run/spire/%i/api.sock`);
  }
  if (instance !== "" && !template.includes("%i")) {
    throw refused(`failed to find %i in ${name}`, "%i stands for the value of -instance");
  }
  if (socketPath !== defaultPath) return socketPath;
  if (instance !== "") return template.replaceAll("%i", instance);
  return env[variable] || defaultPath;
}

function refused(message: string, hint: string): Fault {
  return new Fault("invalid", message, { code: "socket-template", hint });
}
