// The Vercel AI SDK, as its own documentation uses it, by whichever of its providers made the model.
import { generateText, isStepCount, Output, streamText, tool } from "ai";
import { z } from "zod";
import { main, raised, Weather } from "./cases.mjs";

const PERSON = z.object({
  name: z.string(),
  age: z.number().int(),
  home: z.tuple([z.number(), z.string()]),
  pet: z.discriminatedUnion("kind", [
    z.object({ kind: z.literal("cat"), lives: z.number() }),
    z.object({ kind: z.literal("dog") }),
  ]),
});

const figures = (usage) => ({
  input: usage.inputTokens,
  output: usage.outputTokens,
  cached: usage.inputTokenDetails.cacheReadTokens,
});

async function pieces(model, prompt, into) {
  // Without `onError` the SDK prints what it also gives as a part of the stream.
  const result = streamText({ model, prompt, onError: () => {} });
  for await (const part of result.stream) {
    if (part.type === "error") throw part.error;
    if (part.type === "text-delta") into.push(part.text);
  }
  return result.usage;
}

export const cases = (model) => {
  const plain = async (prompt) => ({ text: (await generateText({ model, prompt })).text });
  return {
    plain,
    async streamed(prompt) {
      const got = [];
      await pieces(model, prompt, got);
      return { text: got.join(""), pieces: got.length };
    },
    async usage(prompt) {
      const whole = await generateText({ model, prompt });
      return { plain: figures(whole.usage), streamed: figures(await pieces(model, prompt, [])) };
    },
    async structured(prompt) {
      const { output } = await generateText({ model, prompt, output: Output.object({ schema: PERSON }) });
      return { objects: [output] };
    },
    async tools(prompt) {
      const weather = new Weather();
      const get_weather = tool({
        description: "The weather in a city",
        inputSchema: z.object({ city: z.string() }),
        execute: (given) => weather.inCity(given),
      });
      const { text } = await generateText({ model, prompt, tools: { get_weather }, stopWhen: isStepCount(5) });
      return { text, cities: weather.cities };
    },
    async "multi-turn"(prompts) {
      const messages = [];
      let text;
      for (const content of prompts) {
        messages.push({ role: "user", content });
        const answer = await generateText({ model, messages });
        messages.push(...answer.responseMessages);
        text = answer.text;
      }
      return { text };
    },
    async error(prompt) {
      return {
        plain: await raised(() => generateText({ model, prompt })),
        streamed: await raised(() => pieces(model, prompt, [])),
      };
    },
    async cut(prompt) {
      const got = [];
      return { error: await raised(() => pieces(model, prompt, got)), text: got.join("") };
    },
    retry: plain,
  };
};

export const run = (makeModel) => main((service) => cases(makeModel(service)));
