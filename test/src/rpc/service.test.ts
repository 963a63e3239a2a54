import { expect, test } from "vitest";
import { HealthApi, type MethodsOf, ReflectionApi } from "../../../src/rpc/protos.ts";
import { bidi, serverStream, service, unary } from "../../../src/rpc/service.ts";
import { faultOf, refusal } from "../../support/faults.ts";

const Check = unary(async () => ({ status: "SERVING" as const }));
const List = unary(async () => ({ statuses: {} }));
const Watch = serverStream(async function* () {
  yield { status: "SERVING" as const };
});

test("handlers for every method, each of its kind, make a service", () => {
  const made = service(HealthApi, { Check, List, Watch });
  expect(made.service.name).toBe("grpc.health.v1.Health");
  expect([...made.handlers.keys()].sort()).toEqual(["Check", "List", "Watch"]);
});

test("a method without a handler neither compiles nor registers", () => {
  // @ts-expect-error List is missing.
  const fault = faultOf(() => service(HealthApi, { Check, Watch }));
  expect(fault).toMatchObject({
    ...refusal("internal", "rpc-handler"),
    message: "grpc.health.v1.Health/List is unary, its handler is missing",
  });
});

test.each([
  // @ts-expect-error Watch is a stream.
  { what: "unary for a stream", make: () => service(HealthApi, { Check, List, Watch: Check }) },
  // @ts-expect-error Check has one response.
  { what: "a stream for unary", make: () => service(HealthApi, { Check: Watch, List, Watch }) },
  // @ts-expect-error Reflection streams both ways.
  { what: "a server stream for both ways", make: () => service(ReflectionApi, { ServerReflectionInfo: Watch }) },
])("$what neither compiles nor registers", ({ make }) => {
  expect(faultOf(make)).toMatchObject(refusal("internal", "rpc-handler"));
});

test("a response or request of another shape does not compile", () => {
  const wrongResponse = unary(async () => ({ status: "FINE" as const }));
  const wrongRequest = unary(async (_: { readonly service: number }) => ({ status: "SERVING" as const }));
  const wrongMessages = bidi(async function* (requests: AsyncIterable<{ readonly host: number }>) {
    for await (const { host } of requests) yield { valid_host: String(host) };
  });
  // @ts-expect-error FINE is no status.
  service(HealthApi, { Check: wrongResponse, List, Watch });
  // @ts-expect-error The service is named by text.
  service(HealthApi, { Check: wrongRequest, List, Watch });
  // @ts-expect-error The host is text.
  expect(service(ReflectionApi, { ServerReflectionInfo: wrongMessages }).handlers.size).toBe(1);
});

test("a table over the methods of a service lacks none", () => {
  const complete: Record<MethodsOf<typeof HealthApi>, string> = { Check: "a", List: "b", Watch: "c" };
  // @ts-expect-error Watch has no row.
  const lacking: Record<MethodsOf<typeof HealthApi>, string> = { Check: "a", List: "b" };
  // @ts-expect-error There is no such method.
  const tooMany: Record<MethodsOf<typeof HealthApi>, string> = { ...complete, Chekc: "d" };
  expect(Object.keys(complete).length).toBeGreaterThan(Object.keys(lacking).length);
  expect(Object.keys(tooMany)).toContain("Chekc");
});
