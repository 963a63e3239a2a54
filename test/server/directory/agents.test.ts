import { describe, expect, test } from "vitest";
import { isBanned, standingOf } from "../../../server/directory/agents.ts";
import { id, START } from "../ca/support.ts";
import { makeNode } from "./support.ts";

const A = id("/spire/agent/join_token/a");
const B = id("/spire/agent/join_token/b");
const later = new Date(START.getTime() + 60_000);
const earlier = new Date(START.getTime() - 1);
const node = makeNode({ id: A, serialNumber: "11", newSerialNumber: "12" });

describe("an agent's standing", () => {
  test("the current serial is active, the renewed one pending", () => {
    expect(standingOf(A, node, { serialNumber: "11", notAfter: later }, START)).toEqual({ state: "active" });
    expect(standingOf(A, node, { serialNumber: "12", notAfter: later }, START)).toEqual({ state: "pending" });
  });

  test.each([
    {
      title: "an expired certificate, even with the current serial",
      node,
      serial: "11",
      notAfter: earlier,
      reason: "expired",
      message: `agent "${A}" SVID is expired`,
    },
    {
      title: "an evicted agent",
      node: undefined,
      serial: "11",
      notAfter: later,
      reason: "not_attested",
      message: `agent "${A}" is not attested`,
    },
    {
      title: "a banned agent",
      node: { ...node, serialNumber: "", newSerialNumber: "" },
      serial: "11",
      notAfter: later,
      reason: "banned",
      message: `agent "${A}" is banned`,
    },
    {
      title: "a banned agent that shows no serial",
      node: { ...node, serialNumber: "", newSerialNumber: "" },
      serial: "",
      notAfter: later,
      reason: "banned",
      message: `agent "${A}" is banned`,
    },
    {
      title: "a replaced certificate",
      node,
      serial: "10",
      notAfter: later,
      reason: "not_active",
      message: `agent "${A}" expected to have serial number 11; has 10`,
    },
    {
      title: "an empty serial when none is pending",
      node: { ...node, newSerialNumber: "" },
      serial: "",
      notAfter: later,
      reason: "not_active",
      message: `agent "${A}" expected to have serial number 11; has `,
    },
  ])("$title is denied as $reason", ({ node: record, serial, notAfter, reason, message }) => {
    expect(standingOf(A, record, { serialNumber: serial, notAfter }, START)).toEqual({
      state: "denied",
      reason,
      message,
    });
  });

  test("T-N14 another agent's valid certificate is of no use", () => {
    const other = makeNode({ id: B, serialNumber: "21" });
    expect(standingOf(B, other, { serialNumber: "21", notAfter: later }, START).state).toBe("active");
    expect(standingOf(B, other, { serialNumber: "11", notAfter: later }, START)).toMatchObject({
      state: "denied",
      reason: "not_active",
    });
    expect(standingOf(B, node, { serialNumber: "11", notAfter: later }, START)).toMatchObject({
      state: "denied",
      reason: "not_attested",
    });
  });

  test("a ban is an empty serial", () => {
    expect([isBanned(node), isBanned({ ...node, serialNumber: "" })]).toEqual([false, true]);
  });
});
