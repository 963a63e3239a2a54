import { spiffeLibrary } from "./library.ts";

const program = process.env["INTEROP_RUST_SPIFFE"] ?? "";

spiffeLibrary({ name: "Rust's spiffe", isSkipped: program === "", run: (...args) => [program, ...args] });
