// What every client program for Node shares, as cases.py does for Python: its cases by name, run one after the other,
// each telling what it saw as one JSON object a line, with `crash` when the case itself broke.

const { STEADYHAND_URL, STEADYHAND_KEY, STEADYHAND_MODEL, STEADYHAND_PROMPTS } = process.env;
export const baseURL = STEADYHAND_URL;
export const apiKey = STEADYHAND_KEY;
export const modelName = STEADYHAND_MODEL;

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

/** Run the cases that the command line names. */
export async function main(cases) {
  const prompts = JSON.parse(STEADYHAND_PROMPTS);
  for (const name of process.argv.slice(2)) {
    let saw;
    try {
      saw = await cases[name](prompts[name]);
    } catch (error) {
      saw = { crash: `${error.stack}\n${JSON.stringify(error)}` };
    }
    console.log(JSON.stringify({ case: name, ...saw }));
  }
}
