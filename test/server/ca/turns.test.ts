import { describe, expect, test } from "vitest";
import { type Turn, Turns } from "../../../server/ca/turns.ts";
import { retryAfterOf } from "../../../src/rpc/status.ts";
import { FakeClock } from "../../support/clock.ts";
import { faultFrom } from "../../support/faults.ts";

const stay = new AbortController().signal;

/** One at a time: what has begun, in order, and how to end it. */
class Desk {
  readonly clock = new FakeClock();
  readonly turns = new Turns(this.clock, 1);
  readonly begun: string[] = [];
  #finish: (() => void)[] = [];

  ask(name: string, turn?: Turn): Promise<void> {
    return this.turns.take(async () => {
      this.begun.push(name);
      await new Promise<void>((done) => this.#finish.push(done));
    }, turn);
  }

  /** The one that is under way ends, and then the next. */
  async work(count: number): Promise<void> {
    for (let done = 0; done < count; done += 1) {
      this.#finish.shift()?.();
      for (let turn = 0; turn < 5; turn += 1) await Promise.resolve();
    }
  }
}

const from = (caller: string, signal = stay): Turn => ({ caller, signal });

describe("turns of what is signed", () => {
  test("callers take turns, and a caller with much to ask waits for those with little", async () => {
    const desk = new Desk();
    const asked = ["a1", "a2", "a3", "a4"].map((name) => desk.ask(name, from("a")));
    asked.push(desk.ask("b1", from("b")), desk.ask("c1", from("c")));
    await desk.work(6);
    await Promise.all(asked);
    expect(desk.begun).toEqual(["a1", "a2", "b1", "c1", "a3", "a4"]);
  });

  test("what the server signs for itself goes first", async () => {
    const desk = new Desk();
    const asked = [desk.ask("a1", from("a")), desk.ask("a2", from("a")), desk.ask("own")];
    await desk.work(3);
    await Promise.all(asked);
    expect(desk.begun).toEqual(["a1", "own", "a2"]);
  });

  test("what replaces an SVID that is about to end goes first, the nearest end before the others, and keeps nobody out", async () => {
    const desk = new Desk();
    const ending = (seconds: number): Turn => ({
      ...from("b"),
      endsAt: new Date(desk.clock.now().getTime() + seconds * 1000),
    });
    const asked = [desk.ask("first", from("a"))];
    for (const name of ["a1", "a2", "a3"]) asked.push(desk.ask(name, from("a")));
    for (const seconds of [50, 3600, 10, -5, 30, 40]) asked.push(desk.ask(`b${seconds}`, ending(seconds)));
    asked.push(desk.ask("own"));
    await desk.work(asked.length);
    await Promise.all(asked);
    const urgent = ["b-5", "b10", "b30", "a1", "b40", "b50"];
    expect(desk.begun).toEqual(["first", "own", ...urgent, "b3600", "a2", "a3"]);
  });

  test("who leaves gives up its place, and its work is never done", async () => {
    const desk = new Desk();
    const leaving = new AbortController();
    const first = desk.ask("a1", from("a"));
    const left = desk.ask("b1", from("b", leaving.signal));
    const last = desk.ask("c1", from("c"));
    leaving.abort(new Error("gone"));
    await expect(left).rejects.toThrow("gone");
    await expect(desk.ask("b2", from("b", leaving.signal))).rejects.toThrow("gone");
    await desk.work(2);
    await Promise.all([first, last]);
    expect(desk.begun).toEqual(["a1", "c1"]);
  });

  test("a failure gives the turn on", async () => {
    const turns = new Turns(new FakeClock(), 1);
    const failing = turns.take(() => Promise.reject(new Error("no")), from("a"));
    const after = turns.take(async () => "done", from("a"));
    await expect(failing).rejects.toThrow("no");
    expect(await after).toBe("done");
  });

  test("a caller may not fill the queue, nor all of them without end; the server's own work is never refused", async () => {
    const desk = new Desk();
    const waiting = [desk.ask("first", from("a"))];
    for (let index = 0; index < 1024; index += 1) waiting.push(desk.ask("a", from("a")));
    const refused = { kind: "exhausted", code: "signing-busy" };
    const fault = await faultFrom(desk.ask("a", from("a")));
    expect(fault).toMatchObject(refused);
    expect(retryAfterOf(fault)).toBe(3000);
    for (let index = 0; index < 3072; index += 1) waiting.push(desk.ask("b", from(`b${index % 4}`)));
    expect(await faultFrom(desk.ask("c", from("c")))).toMatchObject(refused);
    waiting.push(desk.ask("own"));
    await desk.work(2);
    expect(desk.begun.slice(0, 2)).toEqual(["first", "own"]);
    await desk.work(waiting.length);
    await Promise.all(waiting);
  });
});
