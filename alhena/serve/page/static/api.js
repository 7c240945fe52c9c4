// The Gemini API of the server that this page comes from.

const EVENT_END = /\r\n\r\n|\n\n/;

/** An error of the API: HTTP code, Google's status, message. */
export class ApiError extends Error {
  constructor(code, status, message) {
    super(message);
    this.code = code;
    this.status = status;
  }

  get needsKey() {
    return this.code === 401 || ([400, 403].includes(this.code) && /api.?key/i.test(this.message));
  }
}

/** The base URL of the API, without a slash at its end. */
export const baseUrl = () => new URL(".", document.baseURI).href.replace(/\/$/, "");

export class Api {
  key = "";

  /** Models that can generate, as the API lists them. */
  async models() {
    const models = [];
    let page = "";
    do {
      const answer = await this.#json(`models${page && `?pageToken=${encodeURIComponent(page)}`}`);
      models.push(...(answer.models ?? []));
      page = answer.nextPageToken ?? "";
    } while (page && models.length < 1000);
    return models.filter((model) => (model.supportedGenerationMethods ?? ["generateContent"]).includes("generateContent"));
  }

  /** Number of tokens of a request. */
  async count(model, request, signal) {
    const body = { generateContentRequest: { model, ...request } };
    return (await this.#json(`${model}:countTokens`, body, signal)).totalTokens;
  }

  /** Events of an answer, as they arrive. Throws ApiError, also for an error in the middle of the stream. */
  async *stream(model, request, signal) {
    const response = await this.#fetch(`${model}:streamGenerateContent?alt=sse`, request, signal);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let buffer = "";
    for (;;) {
      const { value, done } = await reader.read();
      buffer += value ?? "";
      const events = buffer.split(EVENT_END);
      buffer = done ? "" : events.pop();
      for (const event of events) {
        const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
        if (!data.trim()) continue;
        const parsed = JSON.parse(data);
        if (parsed.error) throw readError(parsed, response.status);
        yield parsed;
      }
      if (done) return;
    }
  }

  async #json(path, body, signal) {
    return (await this.#fetch(path, body, signal)).json();
  }

  async #fetch(path, body, signal) {
    const headers = {};
    if (body) headers["Content-Type"] = "application/json";
    if (this.key) headers["x-goog-api-key"] = this.key;
    const options = { method: body ? "POST" : "GET", headers, signal, credentials: "omit", body: body && JSON.stringify(body) };
    let response;
    try {
      response = await fetch(`${baseUrl()}/v1beta/${path}`, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "UNAVAILABLE", "The server does not answer. Is it still running?");
    }
    if (!response.ok) throw readError(await response.json().catch(() => null), response.status);
    return response;
  }
}

function readError(body, code) {
  const error = (Array.isArray(body) ? body[0] : body)?.error ?? {};
  return new ApiError(error.code ?? code, error.status ?? "", error.message ?? `The server answered with status ${code}.`);
}
