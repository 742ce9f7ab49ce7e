// The Vercel AI SDK with its provider for whatever speaks the OpenAI API.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { run } from "./ai-sdk.mjs";
import { apiKey, baseURL, modelName } from "./cases.mjs";

const provider = createOpenAICompatible({
  name: "steadyhand",
  baseURL,
  apiKey,
  includeUsage: true,
  supportsStructuredOutputs: true,
});

await run(provider(modelName));
