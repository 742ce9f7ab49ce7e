// The Vercel AI SDK with its provider for OpenAI, which asks by the Responses API.
import { createOpenAI } from "@ai-sdk/openai";
import { run } from "./ai-sdk.mjs";
import { apiKey, baseURL, modelName } from "./cases.mjs";

await run(createOpenAI({ baseURL, apiKey })(modelName));
