// The Vercel AI SDK with its provider for whatever speaks the OpenAI API.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { run } from "./ai-sdk.mjs";

await run(({ baseURL, apiKey, modelName }) => {
  const provider = createOpenAICompatible({
    name: "steadyhand",
    baseURL,
    apiKey,
    includeUsage: true,
    supportsStructuredOutputs: true,
  });
  return provider(modelName);
});
