// The conversation: turns of the user and the model, and the request that they form. No DOM here.
//
// A turn is {role, items, …}; an item is {part, name} with a part of the Gemini wire format and, for a file, its name. A turn of the
// model also has what its answer ended with: finish, usage, seconds, error.

/** The reason why an answer ended, for people; nothing where it simply ended. */
const FINISH = {
  MAX_TOKENS: "The answer reached the maximum number of tokens.",
  SAFETY: "The answer was blocked by the safety settings.",
  PROHIBITED_CONTENT: "The answer was blocked: prohibited content.",
  BLOCKLIST: "The answer was blocked: a forbidden term.",
  RECITATION: "The answer was stopped: it repeats a source.",
  MALFORMED_FUNCTION_CALL: "The model wrote a malformed function call.",
  UNEXPECTED_TOOL_CALL: "The model called a function that was not declared.",
  IMAGE_SAFETY: "The picture was blocked by the safety settings.",
  NO_IMAGE: "The model made no picture.",
  LANGUAGE: "The answer was stopped: unsupported language.",
};

export const finishText = (turn) => (turn.stopped ? "You stopped this answer." : (FINISH[turn.finish] ?? (turn.finish && turn.finish !== "STOP" ? `The answer ended: ${turn.finish}.` : "")));

export const userTurn = (items) => ({ role: "user", items });
export const modelTurn = () => ({ role: "model", items: [] });

/** Adds a part of a stream to a turn; text joins the text before it. A signature of thoughts stays with its part. */
function append(turn, part) {
  const last = turn.items.at(-1)?.part;
  const isText = typeof part.text === "string" && !part.functionCall && !part.inlineData;
  const joins = isText && typeof last?.text === "string" && Boolean(last.thought) === Boolean(part.thought);
  if (joins) Object.assign(last, part, { text: last.text + part.text });
  else if (!isText || part.text || part.thoughtSignature) turn.items.push({ part: { ...part } });
}

/** Adds an event of a stream to a turn of the model. */
export function receive(turn, event) {
  const candidate = event.candidates?.[0];
  for (const part of candidate?.content?.parts ?? []) append(turn, part);
  if (candidate?.finishReason) turn.finish = candidate.finishReason;
  if (event.promptFeedback?.blockReason) turn.finish = event.promptFeedback.blockReason;
  if (event.usageMetadata) turn.usage = event.usageMetadata;
}

/** The text of a turn without its thoughts and files. */
export const textOf = (turn) => turn.items.filter(({ part, name }) => typeof part.text === "string" && !part.thought && !name).map(({ part }) => part.text).join("");

/** Replaces the text of a turn; its other parts stay, files before the text. */
export function replaceText(turn, text) {
  const isText = ({ part, name }) => typeof part.text === "string" && !part.thought && !name;
  turn.items = turn.items.filter((item) => !isText(item));
  if (text) turn.items.push({ part: { text } });
}

/** The function calls of a turn. */
export const callsOf = (turn) => turn.items.map(({ part }) => part.functionCall).filter(Boolean);

/** A part with what a person typed as the result of a call: a JSON object as it is, anything else under "result". */
export function resultPart(call, typed) {
  let value = typed;
  try {
    value = JSON.parse(typed);
  } catch {
    // It is text.
  }
  const response = value !== null && typeof value === "object" && !Array.isArray(value) ? value : { result: value };
  return { functionResponse: { ...(call.id ? { id: call.id } : {}), name: call.name, response } };
}

/** Contents of a request; turns without parts (of an error) are left out. */
export function contents(turns) {
  return turns.filter((turn) => turn.items.length).map((turn) => ({ role: turn.role, parts: turn.items.map(({ part }) => part) }));
}

/** Bytes of the inline data of all turns, as base64. */
export const mediaBytes = (turns) => turns.flatMap((turn) => turn.items).reduce((sum, { part }) => sum + (part.inlineData?.data.length ?? 0), 0);
