// What every client program for Node shares, as cases.py does for Python: its cases by name, run one after the other,
// each telling what it saw as one JSON object a line, with `crash` when the case itself broke.

/** A schema in the words that zod writes: the agent's CLI itself takes none of them. */
export const PERSON = {
  $schema: "https://json-schema.org/draft/2020-12/schema",
  type: "object",
  properties: {
    name: { type: "string", example: "Grace" },
    age: { type: "integer" },
    home: { type: "array", prefixItems: [{ type: "number" }, { type: "string" }], items: false },
    pet: { type: "object", properties: { kind: { const: "cat" } }, required: ["kind"] },
  },
  required: ["name", "age", "home", "pet"],
  additionalProperties: false,
};

/** The client's own tool, and the cities that it was asked for. */
export class Weather {
  cities = [];

  inCity({ city }) {
    this.cities.push(city);
    return `rain in ${city}`;
  }
}

/** The exception that a call ends with, in the words that its user reads; a call that ends well has none. */
export async function raised(call) {
  try {
    await call();
  } catch (error) {
    return { kind: error.name ?? typeof error, text: error.message ?? JSON.stringify(error) };
  }
  return { kind: "", text: "" };
}

/** The cases that are made of two others. */
function withDerived(cases) {
  const shown = async (ask, prompt) => {
    let text = null;
    const error = await raised(async () => ({ text } = await ask(prompt)));
    return { text, kind: error.kind, error: error.text };
  };
  const both = async (prompt) => ({
    plain: await shown(cases.plain, prompt),
    streamed: await shown(cases.streamed, prompt),
  });
  return { ...cases, thinking: both, refused: both };
}

/** Run the cases of each service in turn; `connect` makes them of the service's address, key and model. `end` of them
 * ends what the client has started. */
export async function main(connect) {
  for (const { url: baseURL, key: apiKey, model, prompts } of JSON.parse(process.env.STEADYHAND_RUNS)) {
    const cases = withDerived(connect({ baseURL, apiKey, modelName: model }));
    for (const [name, prompt] of Object.entries(prompts)) {
      let saw;
      try {
        saw = await cases[name](prompt);
      } catch (error) {
        saw = { crash: `${error.stack}\n${JSON.stringify(error)}` };
      }
      console.log(JSON.stringify({ model, case: name, ...saw }));
    }
    cases.end?.();
  }
}
