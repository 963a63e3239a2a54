import { Fault, messageOf } from "../../src/runtime/fault.ts";
import { type KubeApi, METADATA_LIST, METADATA_ONLY } from "./kube-api.ts";
import { KubeWatch, type KubeWatchOptions } from "./kube-watch.ts";
import { objectOf, textEntries, textOf } from "./pods.ts";

type Labels = readonly (readonly [key: string, value: string])[];

interface Namespace {
  readonly name: string;
  readonly labels: Labels;
}

const PATH = "/api/v1/namespaces";

/** Labels of namespaces: as they are watched, where they are, otherwise asked of the API server each time; callers at the same time share the answer. */
export class NamespaceLabels {
  readonly #api: Pick<KubeApi, "ask">;
  readonly #asking = new Map<string, Promise<Labels>>();
  readonly #watch: Pick<KubeWatch<Namespace>, "objects"> | undefined;

  constructor(api: Pick<KubeApi, "ask">, watch?: Pick<KubeWatch<Namespace>, "objects">) {
    this.#api = api;
    this.#watch = watch;
  }

  /** Throws `unavailable` with the reason when they cannot be had. */
  async of(namespace: string): Promise<Labels> {
    for (const { name, labels } of this.#watch?.objects?.values() ?? []) if (name === namespace) return labels;
    const running = this.#asking.get(namespace) ?? this.#ask(namespace);
    this.#asking.set(namespace, running);
    return running;
  }

  async #ask(namespace: string): Promise<Labels> {
    try {
      const path = `${PATH}/${encodeURIComponent(namespace)}`;
      const found = await this.#api.ask({ path, accept: METADATA_ONLY });
      return textEntries(objectOf(found["metadata"])["labels"]);
    } catch (error) {
      const message = `unable to get namespace labels for ${JSON.stringify(namespace)}: ${messageOf(error)}`;
      throw new Fault("unavailable", message, {
        code: "namespace-labels",
        hint: 'let the agent\'s service account "get" the resource "namespaces", or turn enable_namespace_labels off',
      });
    } finally {
      this.#asking.delete(namespace);
    }
  }
}

export function watchNamespaces(
  parts: Pick<KubeWatchOptions<Namespace>, "api" | "clock" | "log">,
): KubeWatch<Namespace> {
  const read = (object: unknown): Namespace => {
    const { name, labels } = objectOf(objectOf(object)["metadata"]);
    return { name: textOf(name), labels: textEntries(labels) };
  };
  return new KubeWatch({ ...parts, path: PATH, accept: { list: METADATA_LIST, watch: METADATA_ONLY }, read });
}
