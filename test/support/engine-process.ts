/** A container engine as a process, on the socket in its arguments. Started by `startUserEngine`. */
import { type EngineDoubleOptions, serveEngine } from "./engine.ts";

const [path = "", options = "{}"] = process.argv.slice(2);
const server = serveEngine(path, JSON.parse(options) as EngineDoubleOptions, () => undefined);
server.once("listening", () => process.send?.({ listening: true }));
