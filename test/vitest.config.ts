import { defineConfig } from "vitest/config";

export default defineConfig({
  root: new URL("..", import.meta.url).pathname,
  test: {
    include: ["test/**/*.test.ts"],
    exclude: ["test/interop/**", "node_modules/**"],
    globalSetup: ["test/support/postgres-setup.ts"],
    setupFiles: ["test/support/expressions-setup.ts"],
    pool: "forks",
    // Tests between processes mostly wait; one worker on two cores leaves half of the machine idle.
    maxWorkers: 2,
    // A machine that stalls for seconds fails a test that waits for a process; one that passes only then is named.
    retry: process.env["CI"] === undefined ? 0 : 1,
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
});
