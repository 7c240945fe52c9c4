// "Get code": a request as a program in Python, JavaScript, or for curl. The programs run as they are shown.

import { baseUrl } from "./api.js";

const KEY_NOTE = "needs the environment variable GEMINI_API_KEY";

/** Each language's program for a request to a model. */
export function programs(model, request, hasKey) {
  const name = model.replace(/^models\//, "");
  return { python: python(name, request, hasKey), javascript: javascript(name, request, hasKey), curl: curl(model, request, hasKey) };
}

// ── Python ──────────────────────────────────────────────────────────────────────────────────────────────────

/** A JSON value as a Python literal; objects and lists on lines of their own. */
function literal(value, indent = "") {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  // Python reads the escapes of JSON strings as JSON does.
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = `${indent}    `;
  const isList = Array.isArray(value);
  const items = isList ? value.map((item) => literal(item, inner)) : Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}: ${literal(item, inner)}`);
  const [open, close] = isList ? "[]" : "{}";
  const short = `${open}${items.join(", ")}${close}`;
  if (short.length < 72 && !short.includes("\n")) return short;
  return `${open}\n${items.map((item) => `${inner}${item},\n`).join("")}${indent}${close}`;
}

function pythonPart(part) {
  const bytes = (base64) => `b64decode(${literal(base64)})`;
  const fields = {
    text: part.text !== undefined && literal(part.text),
    thought: part.thought && "True",
    inline_data: part.inlineData && `types.Blob(mime_type=${literal(part.inlineData.mimeType)}, data=${bytes(part.inlineData.data)})`,
    function_call: part.functionCall && literal(part.functionCall, "            "),
    function_response: part.functionResponse && literal(part.functionResponse, "            "),
    thought_signature: part.thoughtSignature && bytes(part.thoughtSignature),
  };
  const given = Object.entries(fields).filter(([, value]) => value);
  return `types.Part(${given.map(([name, value]) => `${name}=${value}`).join(", ")})`;
}

const snake = (name) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

/** Arguments of GenerateContentConfig, one a line. */
function pythonConfig(request) {
  const lines = [];
  if (request.systemInstruction) lines.push(`system_instruction=${literal(request.systemInstruction.parts[0].text)}`);
  for (const [name, value] of Object.entries(request.generationConfig ?? {})) lines.push(`${snake(name)}=${literal(value, "    ")}`);
  if (request.tools) lines.push(`tools=${literal(request.tools, "    ")}`);
  if (request.toolConfig) lines.push(`tool_config=${literal(request.toolConfig)}`);
  return lines;
}

function python(model, request, hasKey) {
  const config = pythonConfig(request);
  const hasBytes = request.contents.some((content) => content.parts.some((part) => part.inlineData || part.thoughtSignature));
  const turns = request.contents.map(
    (content) => `    types.Content(\n        role=${literal(content.role)},\n        parts=[\n${content.parts.map((part) => `            ${pythonPart(part)},\n`).join("")}        ],\n    ),\n`,
  );
  const imports = [hasKey && "import os", hasBytes && "from base64 import b64decode"].filter(Boolean);
  return `# pip install google-genai${hasKey ? `; ${KEY_NOTE}` : ""}
${imports.map((line) => `${line}\n`).join("")}${imports.length ? "\n" : ""}from google import genai
from google.genai import types

client = genai.Client(
    api_key=${hasKey ? 'os.environ["GEMINI_API_KEY"]' : '"any"'},
    http_options=types.HttpOptions(base_url=${literal(baseUrl())}),
)
contents = [
${turns.join("")}]
${config.length ? `config = types.GenerateContentConfig(\n${config.map((line) => `    ${line},\n`).join("")})` : "config = None"}

stream = client.models.generate_content_stream(model=${literal(model)}, contents=contents, config=config)
for number, chunk in enumerate(stream):
    for part in chunk.parts or []:
        if part.text:
            print(part.text, end="", flush=True)
        elif part.inline_data:
            name = f"answer-{number}." + part.inline_data.mime_type.split("/")[1]
            with open(name, "wb") as file:
                file.write(part.inline_data.data)
            print(f"[{name}]")
        elif part.function_call:
            print(part.function_call.name, part.function_call.args)
print()
`;
}

// ── JavaScript ──────────────────────────────────────────────────────────────────────────────────────────────

function javascript(model, request, hasKey) {
  const config = { ...request.generationConfig };
  if (request.systemInstruction) config.systemInstruction = request.systemInstruction.parts[0].text;
  for (const name of ["tools", "toolConfig"]) if (request[name]) config[name] = request[name];
  return `// npm install @google/genai, and save this as answer.mjs${hasKey ? `; ${KEY_NOTE}` : ""}
import { writeFileSync } from "node:fs";
import { GoogleGenAI } from "@google/genai";

const ai = new GoogleGenAI({
  apiKey: ${hasKey ? "process.env.GEMINI_API_KEY" : '"any"'},
  httpOptions: { baseUrl: ${JSON.stringify(baseUrl())} },
});
const contents = ${JSON.stringify(request.contents, null, 2)};
const config = ${JSON.stringify(config, null, 2)};

const stream = await ai.models.generateContentStream({ model: ${JSON.stringify(model)}, contents, config });
let number = 0;
for await (const chunk of stream) {
  for (const part of chunk.candidates?.[0]?.content?.parts ?? []) {
    if (part.text) process.stdout.write(part.text);
    if (part.functionCall) console.log(part.functionCall.name, part.functionCall.args);
    if (part.inlineData) {
      const name = \`answer-\${number++}.\${part.inlineData.mimeType.split("/")[1]}\`;
      writeFileSync(name, Buffer.from(part.inlineData.data, "base64"));
      console.log(\`[\${name}]\`);
    }
  }
}
console.log();
`;
}

// ── curl ────────────────────────────────────────────────────────────────────────────────────────────────────

/** The body comes from standard input: an argument of a command has at most 128 KiB. */
function curl(model, request, hasKey) {
  const key = hasKey ? ' \\\n  -H "x-goog-api-key: $GEMINI_API_KEY"' : "";
  return `curl -sN "${baseUrl()}/v1beta/${model}:streamGenerateContent?alt=sse" \\
  -H "Content-Type: application/json"${key} --data-binary @- <<'END'
${JSON.stringify(request, null, 2)}
END
`;
}
