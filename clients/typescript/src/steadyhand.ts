// What a generator cannot know of the service: repeats that run no job twice, waiting, events that reconnect, and tools.
import { createClient, createConfig, type Client } from "./generated/client/index.js";
import { cancelJob, createResponse, getJob, submitJob } from "./generated/sdk.gen.js";
import type { Event, Job, JobRequest, ResponseObject, ResponseRequest } from "./generated/types.gen.js";

const ENDED = new Set<string>(["completed", "failed", "timeout", "cancelled", "interrupted", "error"]);
const WAIT_SECONDS = 30; // of one `Prefer: wait`; the service allows up to 60
const MIN_PAUSE_MS = 100;
const MAX_PAUSE_MS = 2_000;

export interface Options {
  /** The address of the service; the default is http://127.0.0.1:8080. */
  baseUrl?: string;
  /** The key. */
  token?: string;
  /** For how long a request is sent again if the service does not answer or refuses it for now; the default is 30. */
  retrySeconds?: number;
  fetch?: typeof globalThis.fetch;
}

export interface Tool {
  name: string;
  description: string;
  /** A JSON Schema of the arguments. */
  parameters: Record<string, unknown>;
  /** Return the result: text, or any value that becomes JSON. The arguments come from a model: check them. */
  call: (args: Record<string, unknown>) => unknown;
}

export interface ToolCall {
  id: string;
  name: string;
  arguments: Record<string, unknown>;
}

/** A request that failed; `status` is 0 if there was no answer. */
export class SteadyhandError extends Error {
  override readonly name = "SteadyhandError";
  constructor(
    readonly status: number,
    readonly code: string,
    detail: string,
    options?: ErrorOptions,
  ) {
    super(detail, options);
  }
}

interface Answer<T> {
  data?: T;
  error?: unknown;
  response?: Response;
}

/** A client of one service. `client` is for the generated functions: `listJobs({ client: steadyhand.client })`. */
export class Steadyhand {
  readonly client: Client;
  readonly #retryMs: number;

  constructor(options: Options = {}) {
    const { baseUrl = "http://127.0.0.1:8080", token, retrySeconds = 30, fetch } = options;
    this.#retryMs = retrySeconds * 1000;
    this.client = createClient(
      createConfig({ baseUrl, ...(token && { auth: token }), ...(fetch && { fetch }) }),
    );
  }

  /** Submit a job. It runs once, also if the answer is lost and the request is sent again. */
  async submit(body: JobRequest, idempotencyKey: string = crypto.randomUUID()): Promise<Job> {
    const headers = { "Idempotency-Key": idempotencyKey };
    return this.#send(() => submitJob({ client: this.client, body, headers }));
  }

  /** Return a job as it is now. */
  async get(id: string): Promise<Job> {
    return this.#send(() => getJob({ client: this.client, path: { job_id: id } }));
  }

  /** Cancel a job; one that has ended does not change. */
  async cancel(id: string): Promise<Job> {
    return this.#send(() => cancelJob({ client: this.client, path: { job_id: id } }));
  }

  /** Return a job when it has ended and does not run again by itself, or as it is after `seconds`. */
  async wait(id: string, seconds = Infinity): Promise<Job> {
    const until = performance.now() + seconds * 1000;
    for (;;) {
      const left = (until - performance.now()) / 1000;
      const headers = { Prefer: `wait=${Math.max(0, Math.floor(Math.min(WAIT_SECONDS, left)))}` };
      const began = performance.now();
      const job = await this.#send(() => getJob({ client: this.client, path: { job_id: id }, headers }));
      if (isFinal(job) || performance.now() >= until) return job;
      const pause = job.will_run_again ? MAX_PAUSE_MS : MIN_PAUSE_MS;
      if (performance.now() - began < pause) await sleep(Math.min(pause, until - performance.now()));
    }
  }

  /**
   * Yield the events of a job after number `after`, until it has ended and does not run again by itself.
   *
   * A broken connection is opened again after the last numbered event, so each of those comes once.
   */
  async *follow(id: string, after = 0): AsyncGenerator<Event, void, undefined> {
    let failingSince: number | null = null;
    for (let pause = MIN_PAUSE_MS; ; pause = Math.min(pause * 2, MAX_PAUSE_MS)) {
      const before = after;
      const connection = new AbortController();
      try {
        for await (const event of await this.#events(id, after, connection.signal)) {
          if (event.seq !== null) {
            if (event.seq <= after) continue;
            after = event.seq;
          }
          yield event;
        }
      } finally {
        connection.abort(); // also if the caller leaves before the end
      }
      // A stream ends with its job and when it is cut: the job tells which.
      const job = await this.get(id);
      if (isFinal(job) && job.last_event <= after) return;
      if (after > before) {
        failingSince = null;
        pause = MIN_PAUSE_MS;
      } else if (!job.will_run_again) {
        failingSince ??= performance.now();
        if (performance.now() - failingSince > this.#retryMs && isFinal(job)) {
          throw new SteadyhandError(0, "unreachable", "The stream of events ended early several times.");
        }
      }
      await sleep(pause);
    }
  }

  /** Ask an agent that may call these tools, send their results, and return the response that needs none. */
  async respond(body: ResponseRequest, tools: readonly Tool[] = []): Promise<ResponseObject> {
    const offered = tools.map(({ name, description, parameters }) => ({
      type: "function",
      name,
      description,
      parameters,
    }));
    let request: ResponseRequest = tools.length ? { ...body, tools: offered as ResponseRequest["tools"] } : body;
    for (;;) {
      const headers = { "Idempotency-Key": crypto.randomUUID() };
      const response = (await this.#send(() =>
        createResponse({ client: this.client, body: request, headers }),
      )) as ResponseObject;
      const calls = toolCalls(response);
      if (!calls.length) return response;
      const results = await Promise.all(calls.map((call) => resultOf(call, tools)));
      request = { model: response.model, previous_response_id: response.id, input: results };
    }
  }

  async #events(id: string, after: number, signal: AbortSignal): Promise<AsyncGenerator<Event>> {
    const { stream } = await this.client.sse.get<Event>({
      url: "/v1/jobs/{job_id}/events",
      path: { job_id: id },
      headers: { Accept: "text/event-stream", ...(after > 0 && { "Last-Event-ID": String(after) }) },
      security: [{ scheme: "bearer", type: "http" }],
      sseMaxRetryAttempts: 1, // `follow` opens it again
      signal,
    });
    return stream as AsyncGenerator<Event>;
  }

  /** Send a request that has one effect however often it arrives, until it succeeds. */
  async #send<T>(request: () => Promise<Answer<T>>): Promise<T> {
    const until = performance.now() + this.#retryMs;
    for (let pause = MIN_PAUSE_MS; ; pause = Math.min(pause * 2, MAX_PAUSE_MS)) {
      const { data, error, response } = await request();
      if (response?.ok && data !== undefined && error === undefined) return data;
      const status = response?.ok ? 0 : (response?.status ?? 0); // 0: no answer, or a broken one
      const later = Number(response?.headers.get("Retry-After")) * 1000 || 0;
      const isTransient = [0, 429, 502, 503, 504].includes(status);
      const next = Math.max(later, pause);
      if (!isTransient || performance.now() + next > until) throw toError(status, error);
      await sleep(next);
    }
  }
}

function isFinal(job: Job): boolean {
  return ENDED.has(job.state) && !job.will_run_again;
}

function toolCalls(response: ResponseObject): ToolCall[] {
  return (response.output as Record<string, unknown>[])
    .filter((item) => item["type"] === "function_call")
    .map((item) => ({
      id: String(item["call_id"]),
      name: String(item["name"]),
      arguments: JSON.parse(String(item["arguments"])) as Record<string, unknown>,
    }));
}

async function resultOf(call: ToolCall, tools: readonly Tool[]): Promise<Record<string, unknown>> {
  const tool = tools.find((each) => each.name === call.name);
  let result: unknown;
  try {
    if (!tool) throw new Error(`there is no tool ${call.name}`);
    result = await tool.call(call.arguments);
  } catch (error) {
    result = `Error: ${error instanceof Error ? error.message : String(error)}`; // for the agent to read
  }
  const output = typeof result === "string" ? result : JSON.stringify(result ?? null);
  return { type: "function_call_output", call_id: call.id, output };
}

function toError(status: number, error: unknown): SteadyhandError {
  if (error instanceof Error) {
    return new SteadyhandError(0, "unreachable", "The service does not answer.", { cause: error });
  }
  const problem = (typeof error === "object" && error !== null ? error : {}) as Record<string, unknown>;
  const inner = (problem["error"] ?? problem) as Record<string, unknown>; // that of OpenAI's routes is one deeper
  const detail = inner["detail"] ?? inner["message"] ?? `The service answered with ${status}.`;
  return new SteadyhandError(status, String(inner["code"] ?? "bad_answer"), String(detail));
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, Math.max(0, ms)));
}
