// The Vercel AI SDK with its provider for OpenAI, which asks by the Responses API.
import { createOpenAI } from "@ai-sdk/openai";
import { run } from "./ai-sdk.mjs";

await run(({ baseURL, apiKey, modelName }) => createOpenAI({ baseURL, apiKey })(modelName));
