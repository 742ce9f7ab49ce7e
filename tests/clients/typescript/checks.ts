// What the test asks of the client: each case prints a line of JSON.
import { listJobs, Steadyhand, SteadyhandError, type Tool } from "./index.js";

const { STEADYHAND_URL, STEADYHAND_TOKEN } = process.env;
const steadyhand = new Steadyhand({ baseUrl: STEADYHAND_URL!, token: STEADYHAND_TOKEN! });
const print = (name: string, value: unknown) => console.log(JSON.stringify({ case: name, value }));

const job = await steadyhand.submit({ prompt: "say hello", metadata: { from: "typescript" } });
print("submitted", job.state);
const ended = await steadyhand.wait(job.id, 60);
print("waited", [ended.state, ended.answer]);

const told = await steadyhand.submit({ prompt: "tell it" });
const events = [];
for await (const event of steadyhand.follow(told.id)) events.push(event);
print("events", events.filter((event) => event.seq !== null).map((event) => [event.seq, event.type]));
const rest = [];
for await (const event of steadyhand.follow(told.id, events.length)) rest.push(event);
print("rest", rest.length);

const held = await steadyhand.submit({ prompt: "hold" });
await steadyhand.cancel(held.id);
print("cancelled", (await steadyhand.wait(held.id, 60)).state);

const weather: Tool = {
  name: "get_weather",
  description: "The weather.",
  parameters: { type: "object", properties: { city: { type: "string" } } },
  call: ({ city }) => {
    if (city === "Oslo") throw new Error("no such city");
    return { sun: city };
  },
};
const response = await steadyhand.respond({ model: "claude", input: "say it is fine" }, [weather]);
print("responded", response.output.map((item) => (item as { type: string }).type));

try {
  await steadyhand.submit({ prompt: "say x", agent: "nobody" });
} catch (error) {
  if (error instanceof SteadyhandError) print("refused", [error.status, error.code]);
}
const page = await listJobs({ client: steadyhand.client, query: { limit: 2 } });
print("listed", page.data?.data.length);
