import { readlinkSync } from "node:fs";
import type { Call } from "../../src/rpc/caller.ts";
import type { Status } from "../../src/rpc/gen/spire/api/types/Status.ts";
import { codeOf } from "../../src/rpc/status.ts";
import type { Fault } from "../../src/runtime/fault.ts";
import type { Log, LogFields } from "../../src/runtime/log.ts";
import * as events from "../events.ts";

/** Health and reflection. */
const PROBES = /^\/grpc\./;

interface Record {
  log: Log;
  fields: LogFields;
  itemised: boolean;
}

/**
 * What callers did, one record for each call or for each item of a batch: also of calls that were refused. Keeps nothing
 * when there is no audit log.
 */
export class AuditTrail {
  readonly #isOpen: boolean;
  readonly #records = new WeakMap<object, Record>();

  constructor(isOpen: boolean) {
    this.#isOpen = isOpen;
  }

  /** `log` has the caller's fields. */
  open(call: Call, log: Log): void {
    if (this.#isOpen) this.#records.set(call, { log, fields: processFields(call), itemised: false });
  }

  /** The call was let in; `log` says why. */
  admitted(call: Call, log: Log): void {
    const record = this.#records.get(call);
    if (record !== undefined) record.log = log;
  }

  /** What the record of the call says besides. */
  note(call: Call, fields: () => LogFields): void {
    const record = this.#records.get(call);
    if (record !== undefined) record.fields = { ...record.fields, ...fields() };
  }

  item(call: Call, { code = 0, message = "" }: Status, fields: () => LogFields): void {
    const record = this.#records.get(call);
    if (record === undefined) return;
    record.itemised = true;
    events.apiAccessed(record.log, code === 0 ? undefined : { code, message }, { ...record.fields, ...fields() });
  }

  /** A probe that found all well is nobody's deed; there may be one every second. */
  close(call: Call, fault: Fault | undefined): void {
    const record = this.#records.get(call);
    if (record === undefined || (fault === undefined && (record.itemised || PROBES.test(call.method)))) return;
    const status = fault === undefined ? undefined : { code: codeOf(fault), message: fault.message };
    events.apiAccessed(record.log, status, record.fields);
  }
}

function processFields({ caller: { process, unseen } }: Call): LogFields {
  if (unseen !== undefined) return { caller_uid: unseen.uid, caller_gid: unseen.gid };
  if (process === undefined) return {};
  const { pid, uid, gid } = process;
  const path = programOf(pid);
  return {
    caller_pid: pid,
    caller_uid: uid,
    caller_gid: gid,
    // What was read is the caller's only because it is still alive afterwards.
    caller_path: process.isAlive() ? path : undefined,
  };
}

function programOf(pid: number): string | undefined {
  try {
    return readlinkSync(`/proc/${pid}/exe`);
  } catch {
    return undefined;
  }
}
