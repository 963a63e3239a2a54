import { type ClientRequest, type IncomingHttpHeaders, type IncomingMessage, request as plainRequest } from "node:http";
import { type RequestOptions, request as tlsRequest } from "node:https";
import { Fault, messageOf } from "../../src/runtime/fault.ts";

export interface HttpAnswer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: Buffer;
}

export interface HttpQuestion {
  readonly secure: boolean;
  readonly options: RequestOptions;
  /** Longest answer that is read. */
  readonly maxBytes: number;
  /** Who is asked, for the message. */
  readonly peer: string;
  /** Sees the connection before a byte is sent; what it throws ends the request. */
  readonly onConnected?: (request: ClientRequest) => void;
  /** Makes it a POST. */
  readonly body?: string;
  /** Takes an answer of status 200 as it comes, instead of its body. What it throws ends the request. */
  readonly sink?: AnswerSink;
}

export interface AnswerSink {
  /** The answer has begun. */
  opened?(): void;
  push(chunk: Buffer): void;
}

/** One GET, or the POST of a body. Throws `unavailable` when there is no whole answer, of whatever status, within bounds. */
export async function httpAsk(question: HttpQuestion, signal: AbortSignal): Promise<HttpAnswer> {
  signal.throwIfAborted();
  try {
    return await exchange(question, signal);
  } catch (error) {
    if (signal.aborted) throw Fault.from(signal.reason);
    if (error instanceof Fault) throw error;
    const message = `could not ask ${question.peer}: ${messageOf(error)}`;
    throw new Fault("unavailable", message, { code: "peer-unreachable", cause: error });
  }
}

function exchange(question: HttpQuestion, signal: AbortSignal): Promise<HttpAnswer> {
  const { secure, options, onConnected, body } = question;
  return new Promise((resolve, reject) => {
    const send = secure ? tlsRequest : plainRequest;
    const request = send({ ...options, method: body === undefined ? "GET" : "POST", signal }, (response) => {
      read(response, question).then(resolve, reject);
    });
    request.on("error", reject);
    if (onConnected === undefined) request.end(body);
    else request.once("socket", () => whenConnected(request, () => onConnected(request), reject));
  });
}

function whenConnected(request: ClientRequest, check: () => void, refuse: (error: unknown) => void): void {
  const go = (): void => {
    try {
      check();
      request.end();
    } catch (error) {
      refuse(error);
      request.destroy();
    }
  };
  if (request.socket?.connecting === true) request.socket.once("connect", go);
  else go();
}

async function read(response: IncomingMessage, { maxBytes, peer, ...question }: HttpQuestion): Promise<HttpAnswer> {
  const chunks: Buffer[] = [];
  const sink = response.statusCode === 200 ? question.sink : undefined;
  sink?.opened?.();
  let total = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    total += chunk.length;
    if (total > maxBytes) {
      response.destroy();
      throw new Fault("unavailable", `the answer of ${peer} is longer than ${maxBytes} bytes`, { code: "peer-answer" });
    }
    if (sink === undefined) chunks.push(chunk);
    else sink.push(chunk);
  }
  return { status: response.statusCode ?? 0, headers: response.headers, body: Buffer.concat(chunks) };
}

/** JSON of an answer. Throws `unavailable` when it is none. */
export function jsonOf(body: Buffer, peer: string): unknown {
  try {
    return JSON.parse(body.toString("utf8"));
  } catch (cause) {
    throw new Fault("unavailable", `the answer of ${peer} is not JSON`, { code: "peer-answer", cause });
  }
}

/** The first line of an answer, short enough for a log. */
export function excerpt(body: Buffer): string {
  return (body.subarray(0, 300).toString("utf8").split("\n")[0] ?? "").trim();
}
