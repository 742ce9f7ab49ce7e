// The official client for Node, as its own documentation uses it.
import OpenAI from "openai";
import { main, PERSON, raised, Weather } from "./cases.mjs";

const CITY = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };

const say = (content) => [{ role: "user", content }];

const figures = (usage) => ({
  input: usage.prompt_tokens,
  output: usage.completion_tokens,
  cached: usage.prompt_tokens_details.cached_tokens,
});

await main(({ baseURL, apiKey, modelName }) => {
  const client = new OpenAI({ baseURL, apiKey });

  const ask = (messages, fields = {}) =>
    client.chat.completions.create({ model: modelName, messages, ...fields });

  const textOf = async (messages, fields) => (await ask(messages, fields)).choices[0].message.content;

  async function pieces(prompt, into) {
    let usage = null;
    const stream = await ask(say(prompt), { stream: true, stream_options: { include_usage: true } });
    for await (const chunk of stream) {
      for (const choice of chunk.choices) if (choice.delta.content) into.push(choice.delta.content);
      usage = chunk.usage ?? usage;
    }
    return usage;
  }

  const plain = async (prompt) => ({ text: await textOf(say(prompt)) });

  return {
    plain,
    async streamed(prompt) {
      const got = [];
      await pieces(prompt, got);
      return { text: got.join(""), pieces: got.length };
    },
    async usage(prompt) {
      return { plain: figures((await ask(say(prompt))).usage), streamed: figures(await pieces(prompt, [])) };
    },
    async structured(prompt) {
      const json_schema = { name: "person", schema: PERSON, strict: true };
      const text = await textOf(say(prompt), { response_format: { type: "json_schema", json_schema } });
      return { objects: [JSON.parse(text)] };
    },
    async tools(prompt) {
      const weather = new Weather();
      const tool = {
        name: "get_weather",
        parameters: CITY,
        parse: JSON.parse,
        function: (given) => weather.inCity(given),
      };
      const runner = client.chat.completions.runTools({
        model: modelName,
        messages: say(prompt),
        tools: [{ type: "function", function: tool }],
      });
      return { text: await runner.finalContent(), cities: weather.cities };
    },
    async "multi-turn"(prompts) {
      const messages = [];
      for (const prompt of prompts) {
        messages.push(...say(prompt));
        messages.push((await ask(messages)).choices[0].message);
      }
      return { text: messages.at(-1).content };
    },
    async error(prompt) {
      return { plain: await raised(() => ask(say(prompt))), streamed: await raised(() => pieces(prompt, [])) };
    },
    async cut(prompt) {
      const got = [];
      return { error: await raised(() => pieces(prompt, got)), text: got.join("") };
    },
    retry: plain,
  };
});
