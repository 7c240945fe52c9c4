// The settings panel: what a request has besides its contents. A field that is left empty is not sent: the model's default holds.

import { find, kept } from "./dom.js";

const NUMBERS = ["temperature", "topP", "topK", "maxOutputTokens", "seed"];
const EXAMPLES = {
  schema: {
    type: "object",
    properties: { name: { type: "string" }, year: { type: "integer" } },
    required: ["name", "year"],
  },
  functions: [
    {
      name: "get_weather",
      description: "The weather at a place.",
      parameters: { type: "object", properties: { place: { type: "string" } }, required: ["place"] },
    },
  ],
};

/** A field of the panel that cannot be sent as it is. */
export class FieldError extends Error {
  constructor(field, message) {
    super(message);
    this.field = field;
  }
}

export class Settings {
  #form = find("form");
  #model = {};

  /** ``changed`` is called after each change. */
  constructor(changed) {
    this.#restore();
    this.#form.addEventListener("submit", (event) => event.preventDefault());
    this.#form.addEventListener("input", (event) => {
      this.#follow(event.target);
      this.#check();
      kept.write("settings", this.#values());
      changed();
    });
    for (const button of this.#form.querySelectorAll("[data-example]")) {
      button.addEventListener("click", () => this.#insertExample(button.dataset.example));
    }
    find("reset-settings").addEventListener("click", () => this.#reset());
  }

  #fields() {
    return [...this.#form.elements].filter((field) => field.name);
  }

  #values() {
    return Object.fromEntries(this.#fields().map((field) => [field.name, field.type === "checkbox" ? field.checked : field.value]));
  }

  #restore() {
    const values = kept.read("settings") ?? {};
    for (const field of this.#fields()) {
      if (!(field.name in values)) continue;
      if (field.type === "checkbox") field.checked = values[field.name];
      else field.value = values[field.name];
    }
    this.#check();
  }

  #reset() {
    this.#form.reset();
    this.#showDefaults();
    this.#form.dispatchEvent(new Event("input"));
  }

  #insertExample(name) {
    const field = find(name);
    field.value = JSON.stringify(EXAMPLES[name], null, 2);
    if (name === "schema") find("json").checked = true;
    field.dispatchEvent(new Event("input", { bubbles: true }));
    field.focus();
  }

  /** The slider follows its number, and the number its slider; a schema is meant to be used. */
  #follow(field) {
    const { for: target } = field.dataset ?? {};
    if (target) find(target).value = field.value;
    else this.#showSlider(field.name);
    if (field.name === "schema" && field.value.trim()) find("json").checked = true;
  }

  #showSlider(name) {
    const slider = this.#form.querySelector(`[data-for="${name}"]`);
    if (slider) slider.value = find(name).value || find(name).placeholder || slider.min;
  }

  /** Shows the defaults of a model, and the fields that it has. */
  describe(model) {
    this.#model = model;
    this.#showDefaults();
  }

  #showDefaults() {
    const model = this.#model;
    for (const name of ["temperature", "topP"]) {
      find(name).placeholder = model[name] ?? "";
      this.#showSlider(name);
    }
    find("maxOutputTokens").placeholder = model.outputTokenLimit ? `≤ ${model.outputTokenLimit.toLocaleString("en")}` : "default";
    find("topK").placeholder = model.topK === 0 ? "off" : (model.topK ?? "default");
    find("thinking-field").hidden = !model.thinking;
  }

  /** Marks fields that cannot be sent. */
  #check() {
    for (const name of ["schema", "functions"]) {
      let message = "";
      try {
        readJson(name);
      } catch (error) {
        message = error.message;
      }
      find(`${name}-error`).textContent = message;
      find(`${name}-error`).hidden = !message;
      find(name).setAttribute("aria-invalid", String(Boolean(message)));
    }
    for (const name of NUMBERS) find(name).setAttribute("aria-invalid", String(!find(name).validity.valid));
  }

  /** The fields of a request. Throws FieldError. */
  request() {
    const request = {};
    const system = find("system").value.trim();
    if (system) request.systemInstruction = { parts: [{ text: system }] };
    const config = this.#generationConfig();
    if (Object.keys(config).length) request.generationConfig = config;
    const functions = readJson("functions");
    if (functions?.length) {
      request.tools = [{ functionDeclarations: functions }];
      const mode = find("mode").value;
      if (mode !== "AUTO") request.toolConfig = { functionCallingConfig: { mode } };
    }
    return request;
  }

  #generationConfig() {
    const config = {};
    for (const name of NUMBERS) {
      const field = find(name);
      if (!field.validity.valid) throw new FieldError(field, field.validationMessage);
      if (field.value !== "") config[name] = Number(field.value);
    }
    const stop = find("stopSequences").value.split("\n").filter(Boolean);
    if (stop.length) config.stopSequences = stop;
    if (find("modalities").value) config.responseModalities = find("modalities").value.split(",");
    if (find("aspect").value) config.imageConfig = { aspectRatio: find("aspect").value };
    if (this.#model.thinking) config.thinkingConfig = find("thinking").checked ? { includeThoughts: true, thinkingBudget: -1 } : { thinkingBudget: 0 };
    if (find("json").checked) {
      config.responseMimeType = "application/json";
      const schema = readJson("schema");
      if (schema) config.responseJsonSchema = schema;
    }
    return config;
  }
}

/** The value of a field that holds JSON, or null. Throws FieldError. */
function readJson(name) {
  const field = find(name);
  if (!field.value.trim()) return null;
  let value;
  try {
    value = JSON.parse(field.value);
  } catch (error) {
    throw new FieldError(field, `This is not JSON: ${error.message}.`);
  }
  const isList = Array.isArray(value);
  if (name === "functions" && !isList) throw new FieldError(field, "This must be a list of function declarations: [{…}].");
  if (name === "schema" && (isList || typeof value !== "object")) throw new FieldError(field, "A schema is an object: {…}.");
  return value;
}
