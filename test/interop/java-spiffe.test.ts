import { spiffeLibrary } from "./library.ts";

const classPath = process.env["INTEROP_JAVA_CLASSPATH"] ?? "";

spiffeLibrary({
  name: "java-spiffe",
  isSkipped: classPath === "",
  run: (...args) => ["java", "-cp", classPath, "JavaSpiffe", ...args],
});
