import { constants, type ServerHttp2Stream } from "node:http2";
import type { ServerInterceptingCall, ServerInterceptor } from "@grpc/grpc-js";
import type { Clock } from "../runtime/clock.ts";

/** From a status that is sent to the end of its stream. */
const LINGER_MS = 1_000;

/**
 * gRPC inflates what comes packed, a thousand times its size and before anybody looks at it. No client of SPIFFE's or
 * SPIRE's packs anything, and SPIRE's server refuses it too: here gRPC is given a name that it does not know (T-F4).
 */
const uninflated: ServerInterceptor = (_, given) => {
  const call = given as ServerInterceptingCall & { incomingEncoding: string };
  if (call.incomingEncoding !== "identity") call.incomingEncoding = call.incomingEncoding.toUpperCase();
  return call;
};

/**
 * A client that got its status and goes on sending would keep the stream, and what it sent, for as long as it likes. It
 * has a second for what is under way, then is asked to stop, without an error (RFC 9113, section 8.1; T-X9).
 */
function closed(clock: Clock): ServerInterceptor {
  return (_, given) => {
    const { stream } = given as ServerInterceptingCall & { stream: ServerHttp2Stream };
    stream.once("finish", () => {
      if (stream.readableEnded) return;
      const gone = new AbortController();
      stream.once("close", () => gone.abort());
      clock.sleep(LINGER_MS, gone.signal).then(
        () => stream.close(constants.NGHTTP2_NO_ERROR),
        () => {},
      );
    });
    return given as ServerInterceptingCall;
  };
}

/** What every call passes before gRPC handles it. */
export const interceptors = (clock: Clock): ServerInterceptor[] => [uninflated, closed(clock)];
