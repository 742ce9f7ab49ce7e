// The Vercel AI SDK with its provider for OpenAI, told to ask for chat completions.
import { createOpenAI } from "@ai-sdk/openai";
import { run } from "./ai-sdk.mjs";

await run(({ baseURL, apiKey, modelName }) => createOpenAI({ baseURL, apiKey }).chat(modelName));
