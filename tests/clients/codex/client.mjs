// The Codex CLI by its app server, which its own programs use too: JSON-RPC in lines, one thread for each conversation.
import { spawn } from "node:child_process";
import { mkdtempSync } from "node:fs";
import { createInterface } from "node:readline";
import { main, PERSON, raised, Weather } from "./cases.mjs";

const GET_WEATHER = {
  type: "function",
  name: "get_weather",
  description: "The weather in a city",
  inputSchema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
};

class Codex {
  #waiting = new Map();
  #last = 0;
  /** The turn under way: what it has said, and how it ends. */
  #turn;

  constructor({ baseURL, apiKey, modelName }) {
    const home = mkdtempSync("codex-");
    const provider = { name: "Steadyhand", base_url: baseURL, env_key: "STEADYHAND_KEY", wire_api: "responses" };
    const settings = {
      ...Object.fromEntries(Object.entries(provider).map(([key, value]) => [`model_providers.steadyhand.${key}`, value])),
      // Else it asks five times more after a run that failed, with what was said before as its own answer.
      "model_providers.steadyhand.stream_max_retries": 0,
      model_provider: "steadyhand",
      model: modelName,
      check_for_update_on_startup: false,
      "analytics.enabled": false,
      include_environment_context: false,
      include_permissions_instructions: false,
      include_apps_instructions: false,
      include_collaboration_mode_instructions: false,
    };
    const given = Object.entries(settings).flatMap(([key, value]) => ["-c", `${key}=${JSON.stringify(value)}`]);
    this.process = spawn("codex", ["app-server", ...given], {
      // Nothing listens there: what it wants of other machines fails at once.
      env: { ...process.env, CODEX_HOME: home, STEADYHAND_KEY: apiKey, HTTPS_PROXY: "http://127.0.0.1:9" },
      stdio: ["pipe", "pipe", "inherit"],
    });
    createInterface({ input: this.process.stdout }).on("line", (line) => this.#read(JSON.parse(line)));
    const clientInfo = { name: "matrix", title: null, version: "1" };
    this.ready = this.#call("initialize", { clientInfo, capabilities: { experimentalApi: true } });
  }

  #send(message) {
    this.process.stdin.write(`${JSON.stringify(message)}\n`);
  }

  #call(method, params) {
    this.#last += 1;
    this.#send({ id: this.#last, method, params });
    return new Promise((resolve, reject) => this.#waiting.set(this.#last, { resolve, reject }));
  }

  #read({ id, method, params, result, error }) {
    const turn = this.#turn;
    if (method === undefined) {
      const waiting = this.#waiting.get(id);
      this.#waiting.delete(id);
      if (error) waiting.reject(new Error(error.message));
      else waiting.resolve(result);
    } else if (method === "item/tool/call") {
      const text = turn.weather.inCity(params.arguments);
      this.#send({ id, result: { success: true, contentItems: [{ type: "inputText", text }] } });
    } else if (method === "item/agentMessage/delta") {
      turn.into.push(params.delta);
    } else if (method === "item/completed" && params.item.type === "agentMessage") {
      turn.text = params.item.text;
    } else if (method === "thread/tokenUsage/updated") {
      const { inputTokens: input, outputTokens: output, cachedInputTokens: cached } = params.tokenUsage.last;
      turn.used = { input, output, cached };
    } else if (method === "turn/completed") {
      if (params.turn.error) turn.reject(new Error(params.turn.error.message));
      else turn.resolve(turn);
    }
  }

  async thread() {
    await this.ready;
    const fields = { cwd: process.cwd(), approvalPolicy: "never", sandbox: "danger-full-access", ephemeral: true };
    return (await this.#call("thread/start", { ...fields, dynamicTools: [GET_WEATHER] })).thread.id;
  }

  async ask(prompt, { threadId, into = [], weather = new Weather(), outputSchema } = {}) {
    threadId ??= await this.thread();
    return new Promise((resolve, reject) => {
      this.#turn = { into, weather, text: "", resolve, reject };
      this.#call("turn/start", { threadId, input: [{ type: "text", text: prompt }], outputSchema }).catch(reject);
    });
  }
}

await main((service) => {
  const codex = new Codex(service);
  const plain = async (prompt) => ({ text: (await codex.ask(prompt)).text });
  return {
    plain,
    async streamed(prompt) {
      const { into } = await codex.ask(prompt);
      return { text: into.join(""), pieces: into.length };
    },
    async usage(prompt) {
      const { used } = await codex.ask(prompt);
      return { plain: used, streamed: used };
    },
    async structured(prompt) {
      return { objects: [JSON.parse((await codex.ask(prompt, { outputSchema: PERSON })).text)] };
    },
    async tools(prompt) {
      const weather = new Weather();
      const { text } = await codex.ask(prompt, { weather });
      return { text, cities: weather.cities };
    },
    async "multi-turn"(prompts) {
      const threadId = await codex.thread();
      let answer;
      for (const prompt of prompts) answer = await codex.ask(prompt, { threadId });
      return { text: answer.text };
    },
    async error(prompt) {
      return { plain: await raised(() => codex.ask(prompt)), streamed: await raised(() => codex.ask(prompt)) };
    },
    async cut(prompt) {
      const into = [];
      return { error: await raised(() => codex.ask(prompt, { into })), text: into.join("") };
    },
    retry: plain,
    end: () => codex.process.kill(),
  };
});
