import { describe, expect, test } from "vitest";
import { parseAgentPathTemplate, type TemplateData } from "../../../src/evidence/agent-path.ts";
import { parseTrustDomain } from "../../../src/spiffe/id.ts";
import { faultOf, refusal } from "../../support/faults.ts";

const TD = parseTrustDomain("example.org");
const fields: TemplateData["fields"] = {
  PluginName: "x509pop",
  Subject: { CommonName: "Node-7.Example", Organization: ["Org", "Other"] },
  Tags: { role: "web", path: "a/b" },
  Nested: "team/web",
  Trusted: "a/b/c",
};

function render(text: string, more: TemplateData["fields"] = {}): string {
  return parseAgentPathTemplate(text)
    .render(TD, { fields: { ...fields, ...more }, paths: ["Trusted"] })
    .replace("spiffe://example.org/spire/agent", "");
}

describe("agent path templates", () => {
  test.each([
    ["/{{ .PluginName }}/{{ .Subject.CommonName }}", "/x509pop/Node-7.Example"],
    ["{{.PluginName}}/x", "/x509pop/x"],
    ["/{{ .PluginName -}}   /a", "/x509pop/a"],
    ["/a   {{- /* why */ -}}   /b", "/a/b"],
    ["/{{ lower .Subject.CommonName }}", "/node-7.example"],
    ["/{{ .Subject.CommonName | lower | trunc 4 }}", "/node"],
    ["/{{ .Subject.CommonName | trunc -7 }}", "/Example"],
    ['/{{ trimSuffix ".Example" .Subject.CommonName }}', "/Node-7"],
    ['/{{ .Subject.CommonName | trimPrefix "Node-" | replace "." "_" }}', "/7_Example"],
    ['/{{ index .Tags "role" }}/{{ .Tags.role }}', "/web/web"],
    ["/{{ first .Subject.Organization }}/{{ index .Subject.Organization 1 }}", "/Org/Other"],
    ['/{{ join "-" .Subject.Organization }}', "/Org-Other"],
    ['/{{ (splitList "/" .Nested) | last }}', "/web"],
    ["/{{ sha256sum .PluginName | substr 0 8 }}", "/b0a9f26c"],
    ['/{{ default "none" "" }}/{{ "x" | upper }}', "/none/X"],
    ["/{{ .Trusted }}", "/a/b/c"],
  ])("%s gives %s", (text, path) => {
    if (text.includes("sha256sum")) expect(render(text)).toMatch(/^\/[0-9a-f]{8}$/);
    else expect(render(text)).toBe(path);
  });

  test.each(["..", ".", "", "a b", "%2e%2e", "a%2Fb", "a?b", "a#b", "a\0b", "wеb", "a/b", "/", "a\nb"])(
    "T-S1 T-S7 the value %j makes no ID, and is never normalised into one",
    (value) => {
      const thrown = faultOf(() => render("/{{ .Value }}/x", { Value: value }));
      expect(thrown).toMatchObject(refusal("denied", "agent-path"));
      expect(thrown.message).toMatch(/^failed to make spiffe id: /);
    },
  );

  test("T-S1 a path field cannot climb out of its place either", () => {
    for (const value of ["../server", "a/../../server", "a//b", "/a", "a/"])
      expect(faultOf(() => render("/{{ .Trusted }}", { Trusted: value }))).toMatchObject({ kind: "denied" });
  });

  test("a field that is missing is an error, not an empty text", () => {
    expect(faultOf(() => render("/{{ .Tags.nothing }}"))).toMatchObject({
      message: 'failed to make spiffe id: there is no "nothing"',
    });
    expect(faultOf(() => render("/{{ .Tags.__proto__ }}")).kind).toBe("denied");
  });

  test.each([
    ["{{ .A", "unclosed action"],
    ["{{ }}", "missing value"],
    ["{{ if .A }}x{{ end }}", 'function "if" is not supported'],
    ["{{ env .A }}", 'function "env" is not supported'],
    ["{{ lower }}", 'function "lower" takes 1 arguments, not 0'],
    ["{{ .A .B }}", 'unexpected ".B"'],
    ["{{ .A | .B }}", "only a function can follow a |"],
    ["{{ (lower .A }}", "unclosed parenthesis"],
    ["{{ $x }}", "unexpected"],
    ["{{ constructor .A }}", 'function "constructor" is not supported'],
  ])("%s is refused when it is read", (text, message) => {
    const fault = faultOf(() => parseAgentPathTemplate(text));
    expect(fault).toMatchObject(refusal("invalid", "agent-path-template"));
    expect(fault.message).toContain(message);
  });
});
