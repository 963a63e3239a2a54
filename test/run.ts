import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startVitest } from "vitest/node";

/**
 * Runs every test, or those whose path contains one of the arguments, and closes with one plain line:
 * `N passed, N failed`, and `, N skipped` when some were.
 */
const folder = mkdtempSync(join(tmpdir(), "steeple-test-"));
const report = join(folder, "report.json");
const vitest = await startVitest("test", process.argv.slice(2), {
  watch: false,
  config: "test/vitest.config.ts",
  reporters: ["default", "json"],
  outputFile: report,
});
await vitest.close();

interface Report {
  readonly numPassedTests: number;
  readonly numFailedTests: number;
  readonly numFailedTestSuites: number;
  readonly numPendingTests: number;
  readonly numTotalTests: number;
}
const counts: Report = JSON.parse(readFileSync(report, "utf8"));
rmSync(folder, { recursive: true, force: true });

// A file that fails before its first test counts as one failure.
const broken = counts.numFailedTests === 0 && process.exitCode !== undefined && process.exitCode !== 0 ? 1 : 0;
const failed = counts.numFailedTests + broken;
const skipped = counts.numPendingTests > 0 ? `, ${counts.numPendingTests} skipped` : "";
console.log(`${counts.numPassedTests} passed, ${failed} failed${skipped}`);
process.exitCode = failed === 0 && counts.numTotalTests > 0 ? 0 : 1;
