// @google/genai against a scripted server: node genai.mjs URL
import assert from "node:assert/strict";
import { GoogleGenAI } from "@google/genai";

const client = new GoogleGenAI({ apiKey: "any", httpOptions: { baseUrl: process.argv[2] } });
const model = "scripted";
const declaration = {
  name: "get_weather",
  description: "The weather of a city.",
  parametersJsonSchema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
};

// One answer, a stream, token counts, the list of models.
const answer = await client.models.generateContent({ model, contents: "hello", config: { temperature: 0.5 } });
assert.equal(answer.text, "Hello, friend.");
assert.ok(answer.usageMetadata.totalTokenCount > 0);
let streamed = "";
for await (const chunk of await client.models.generateContentStream({ model, contents: "hello" })) {
  streamed += chunk.text ?? "";
}
assert.equal(streamed, "Hello, friend.");
assert.ok((await client.models.countTokens({ model, contents: "hello there" })).totalTokens > 0);
const names = [];
for await (const found of await client.models.list()) names.push(found.name);
assert.deepEqual(names, ["models/scripted"]);

// A chat that calls a function.
const chat = client.chats.create({ model, config: { tools: [{ functionDeclarations: [declaration] }] } });
const asked = await chat.sendMessage({ message: "weather" });
const [call] = asked.functionCalls;
assert.deepEqual([call.name, call.args], ["get_weather", { city: "Bern" }]);
const response = { functionResponse: { name: call.name, id: call.id, response: { degrees: 7 } } };
assert.equal((await chat.sendMessage({ message: response })).text, "It is 7 degrees.");

// A file.
const file = await client.files.upload({ file: new Blob(["a note"], { type: "text/plain" }), config: { mimeType: "text/plain" } });
assert.equal((await client.files.get({ name: file.name })).mimeType, "text/plain");
await client.files.delete({ name: file.name });

// Interactions: stored, continued, streamed, with a function.
const first = await client.interactions.create({ model, input: "hello" });
assert.equal(first.status, "completed");
assert.equal(first.steps.at(-1).content[0].text, "Hello, friend.");
const tools = [{ type: "function", name: "get_weather", parameters: declaration.parametersJsonSchema }];
const second = await client.interactions.create({ model, input: "weather", previous_interaction_id: first.id, tools });
assert.equal(second.status, "requires_action");
const step = second.steps.at(-1);
assert.deepEqual(step.arguments, { city: "Bern" });
const result = [{ type: "function_result", call_id: step.id, name: step.name, result: { degrees: 7 } }];
const third = await client.interactions.create({ model, input: result, previous_interaction_id: second.id, tools });
assert.equal(third.steps.at(-1).content[0].text, "It is 7 degrees.");
const kinds = [];
let text = "";
for await (const event of await client.interactions.create({ model, input: "hello", stream: true })) {
  kinds.push(event.event_type);
  if (event.event_type === "step.delta") text += event.delta.text;
}
assert.equal(text, "Hello, friend.");
assert.deepEqual([kinds[0], kinds.at(-1)], ["interaction.created", "interaction.completed"]);
assert.equal((await client.interactions.get(first.id)).id, first.id);
await client.interactions.delete(first.id);
await assert.rejects(async () => await client.interactions.get(first.id), (error) => error.status === 404);

// Errors have a message that names the field.
const wrong = client.models.generateContent({ model, contents: "hello", config: { temperature: 99 } });
await assert.rejects(wrong, (error) => error.status === 400 && error.message.includes("temperature"));
