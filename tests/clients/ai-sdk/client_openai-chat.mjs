// The Vercel AI SDK with its provider for OpenAI, told to ask for chat completions.
import { createOpenAI } from "@ai-sdk/openai";
import { run } from "./ai-sdk.mjs";
import { apiKey, baseURL, modelName } from "./cases.mjs";

await run(createOpenAI({ baseURL, apiKey }).chat(modelName));
