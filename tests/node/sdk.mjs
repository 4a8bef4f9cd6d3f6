// The official TypeScript SDK through the router: prints one JSON line of what it saw.
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({ baseURL: process.env.ROUTER_UNDER_TEST, apiKey: "sk-node", maxRetries: 0 });
const ticket = "Classify this ticket as billing, technical or account: I can't log in after resetting my password.";
const ask = (content, more = {}) => ({
  model: "claude-sonnet-5-5",
  max_tokens: 700,
  messages: [{ role: "user", content }],
  ...more,
});
const tool = {
  name: "get_weather",
  description: "The weather in a city now",
  input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
};
const seen = {};

const { data: plain, response } = await client.messages.create(ask(ticket)).withResponse();
seen.plain = { model: plain.model, lane: response.headers.get("x-router-lane"), stop: plain.stop_reason };

let text = "";
const stream = client.messages.stream(ask(ticket, { max_tokens: 701 })).on("text", (delta) => (text += delta));
const final = await stream.finalMessage();
seen.stream = {
  model: final.model,
  same: text === final.content.filter((b) => b.type === "text").map((b) => b.text).join(""),
};

const first = ask("What is the weather in Oslo?", { tools: [tool], max_tokens: 1000 });
const asked = await client.messages.create(first);
const use = asked.content.find((block) => block.type === "tool_use");
const answered = await client.messages.create({
  ...first,
  messages: [
    ...first.messages,
    { role: "assistant", content: asked.content },
    { role: "user", content: [{ type: "tool_result", tool_use_id: use.id, content: "4 degrees and rain" }] },
  ],
});
seen.tools = { first: asked.stop_reason, second: answered.stop_reason };

seen.count = (await client.messages.countTokens({ model: "claude-sonnet-5-5", messages: first.messages })).input_tokens;

seen.models = [];
for await (const model of client.models.list({ limit: 5 })) seen.models.push(model.id);

try {
  await client.messages.create(ask("Hello", { model: "claude-3-haiku-20240307" }));
} catch (error) {
  seen.error = { name: error.constructor.name, status: error.status, id: error.requestID ?? null };
}

let batch = await client.messages.batches.create({
  requests: [{ custom_id: "one", params: ask(ticket, { model: "claude-haiku-5-5" }) }],
});
for (let n = 0; n < 600 && batch.processing_status !== "ended"; n++) {
  batch = await client.messages.batches.retrieve(batch.id);
}
seen.batch = [];
for await (const entry of await client.messages.batches.results(batch.id)) seen.batch.push(entry.result.type);

console.log(JSON.stringify(seen));
