// What every client program for Node shares, as cases.py does for Python: its cases by name, run one after the other,
// each telling what it saw as one JSON object a line, with `crash` when the case itself broke.

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

/** Run the cases of each service in turn; `connect` makes them of the service's address, key and model. */
export async function main(connect) {
  for (const { url: baseURL, key: apiKey, model, prompts } of JSON.parse(process.env.STEADYHAND_RUNS)) {
    const cases = connect({ baseURL, apiKey, modelName: model });
    for (const [name, prompt] of Object.entries(prompts)) {
      let saw;
      try {
        saw = await cases[name](prompt);
      } catch (error) {
        saw = { crash: `${error.stack}\n${JSON.stringify(error)}` };
      }
      console.log(JSON.stringify({ model, case: name, ...saw }));
    }
  }
}
