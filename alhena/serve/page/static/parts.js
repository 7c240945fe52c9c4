// The parts of a turn as DOM nodes: text, thoughts, pictures, sound, video, files, function calls and their results.

import { el, icon, setText } from "./dom.js";
import { MarkdownView, codeNode } from "./markdown.js";
import { extension, mediaUrl } from "./media.js";

/** Pictures smaller than this are enlarged without blur, so that a small model's pictures can be seen. */
const SMALL_PICTURE = 128;

/** What shows one item of a turn. ``update`` follows a text that grows; JSON is shown as it is, not as Markdown. */
export function itemView(item, role, isJson) {
  const { part, name } = item;
  if (part.functionCall) return fixed(callNode(part.functionCall));
  if (part.functionResponse) return fixed(resultNode(part.functionResponse));
  if (part.inlineData) return fixed(mediaNode(part.inlineData, name, role));
  if (name) return fixed(chip(name));
  if (part.thought) return new ThoughtView(item);
  // What a user wrote, as it was written; an edited text is another item.
  if (role === "user") return fixed(el("p", { class: "plain" }, part.text));
  return isJson ? new JsonView(item) : new TextView(item);
}

const fixed = (node) => ({ node, update() {} });

class TextView {
  #markdown = new MarkdownView();
  node = this.#markdown.node;

  constructor(item) {
    this.item = item;
  }

  update() {
    this.#markdown.update(this.item.part.text);
  }
}

class JsonView {
  node = codeNode("", "JSON", () => this.item.part.text);
  #code = this.node.querySelector("code");

  constructor(item) {
    this.item = item;
  }

  update() {
    setText(this.#code, this.item.part.text);
  }
}

class ThoughtView {
  #markdown = new MarkdownView();
  #summary = el("summary");
  node = el("details", { class: "thought" }, this.#summary, this.#markdown.node);

  constructor(item) {
    this.item = item;
  }

  update(isGrowing) {
    setText(this.#summary, isGrowing ? "Thinking…" : "Thoughts");
    this.#markdown.update(this.item.part.text);
  }
}

export const chip = (name, ...more) => el("span", { class: "chip" }, icon("file"), el("span", { class: "chip-name" }, name), ...more);

function mediaNode(data, name, role) {
  const kind = data.mimeType.split("/")[0];
  const url = mediaUrl(data);
  const fileName = name ?? `answer.${extension(data.mimeType)}`;
  if (kind === "audio") return el("audio", { controls: true, src: url, "aria-label": fileName });
  if (kind === "video") return el("video", { controls: true, src: url, "aria-label": fileName });
  if (kind !== "image") return el("a", { href: url, download: fileName, class: "plain-link" }, chip(fileName));
  const alt = role === "model" ? "Picture by the model" : (name ?? "Attached picture");
  const image = el("img", { src: url, alt });
  image.addEventListener("load", () => image.classList.toggle("enlarged", Math.max(image.naturalWidth, image.naturalHeight) < SMALL_PICTURE));
  if (role !== "model") return el("figure", {}, image);
  const save = el("a", { href: url, download: fileName, class: "button quiet small" }, icon("save"), el("span", {}, "Save"));
  return el("figure", { class: "generated" }, image, el("figcaption", {}, save));
}

function callNode(call) {
  return codeNode(JSON.stringify(call.args ?? {}, null, 2), `Calls ${call.name}`);
}

function resultNode(result) {
  return codeNode(JSON.stringify(result.response ?? {}, null, 2), `Result of ${result.name}`);
}

let resultFields = 0;

/** A form for the results of function calls; ``send`` receives what was typed, in the order of the calls. */
export function resultForm(calls, send) {
  const fields = calls.map((call) => {
    resultFields += 1;
    const id = `result-${resultFields}`;
    const field = el("textarea", { id, rows: "2", class: "mono", spellcheck: "false", required: true, placeholder: '{"temperature": 21}' });
    return { field, label: el("label", { for: id }, "Result of ", el("code", {}, call.name)) };
  });
  const submit = (event) => {
    event.preventDefault();
    send(fields.map(({ field }) => field.value));
  };
  const note = el("p", { class: "note" }, "Run the function yourself and enter what it returned: JSON or text.");
  const button = el("button", { type: "submit", class: "primary" }, calls.length > 1 ? "Send the results" : "Send the result");
  return el("form", { class: "results", submit }, ...fields.flatMap(({ label, field }) => [label, field]), note, button);
}
