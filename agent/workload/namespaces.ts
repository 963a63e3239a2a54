import { Fault, messageOf } from "../../src/runtime/fault.ts";
import { type KubeApi, METADATA_ONLY } from "./kube-api.ts";
import { objectOf, textEntries } from "./pods.ts";

type Labels = readonly (readonly [key: string, value: string])[];

/** Labels of namespaces, asked of the API server each time; callers at the same time share the answer. */
export class NamespaceLabels {
  readonly #api: Pick<KubeApi, "ask">;
  readonly #asking = new Map<string, Promise<Labels>>();

  constructor(api: Pick<KubeApi, "ask">) {
    this.#api = api;
  }

  /** Throws `unavailable` with the reason when they cannot be had. */
  async of(namespace: string): Promise<Labels> {
    const running = this.#asking.get(namespace) ?? this.#ask(namespace);
    this.#asking.set(namespace, running);
    return running;
  }

  async #ask(namespace: string): Promise<Labels> {
    try {
      const path = `/api/v1/namespaces/${encodeURIComponent(namespace)}`;
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
