// The openai package for Node against a scripted server: node openai.mjs URL
import assert from "node:assert/strict";
import OpenAI from "openai";

const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
for (const path of ["/v1", "/v1beta/openai"]) {
  const client = new OpenAI({ apiKey: "any", baseURL: process.argv[2] + path, maxRetries: 0 });
  const model = "scripted";
  const answer = await client.chat.completions.create({ model, messages: [{ role: "user", content: "hello" }] });
  assert.equal(answer.choices[0].message.content, "Hello, friend.");
  let streamed = "";
  const messages = [{ role: "user", content: "hello" }];
  for await (const chunk of await client.chat.completions.create({ model, messages, stream: true })) {
    streamed += chunk.choices[0]?.delta.content ?? "";
  }
  assert.equal(streamed, "Hello, friend.");
  const asked = await client.chat.completions.create({ model, tools, messages: [{ role: "user", content: "weather" }] });
  const { message } = asked.choices[0];
  assert.equal(message.tool_calls[0].function.arguments, '{"city": "Bern"}');
  const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: '{"degrees": 7}' };
  const told = await client.chat.completions.create({ model, tools, messages: [{ role: "user", content: "weather" }, message, result] });
  assert.equal(told.choices[0].message.content, "It is 7 degrees.");
  assert.deepEqual((await client.models.list()).data.map((found) => found.id), [model]);
}
