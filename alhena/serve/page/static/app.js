// The page: a chat over the Gemini API of the server that it comes from.

import { Api, ApiError } from "./api.js";
import { contents, mediaBytes, modelTurn, receive, resultPart, textOf, userTurn } from "./chat.js";
import { CodeDialog } from "./code_dialog.js";
import { Composer } from "./composer.js";
import { announce, find, kept, oncePerFrame } from "./dom.js";
import { openPanel, startPanels } from "./panels.js";
import { FieldError, Settings } from "./settings.js";
import { TurnView } from "./view.js";

// Rest after the last change before the tokens of a request are counted.
const COUNT_DELAY = 500;
// More media than this (base64) is not sent to be counted: the server decodes it each time.
const MAX_COUNTED_MEDIA = 6e6;
const SPOKEN_CHARACTERS = 2000;

const api = new Api();
const views = new Map();
let turns = kept.read("chat") ?? [];
let models = [];
let running = null;

const settings = new Settings(() => {
  composer.say("");
  countSoon();
});
const composer = new Composer(() => send(), () => countSoon());
const codeDialog = new CodeDialog(() => nextRequest());

const model = () => find("model").value;
const shortName = (name) => name.replace(/^models\//, "");
const draftTurns = () => (composer.items.length ? [userTurn(composer.items)] : []);

// ── The conversation on the screen ──────────────────────────────────────────────────────────────────────────

const actions = { retry, edit, sendResults };
// Whether the end of the conversation stays in view while it grows: until a person scrolls up.
let isFollowing = true;

function distanceToEnd() {
  const { scrollHeight, scrollTop, clientHeight } = find("scroll");
  return scrollHeight - scrollTop - clientHeight;
}

let lastTop = 0;

/** A person who scrolls up stops following; what grows below does not. */
function follow() {
  const { scrollTop } = find("scroll");
  isFollowing = distanceToEnd() < 80 || (isFollowing && scrollTop >= lastTop);
  lastTop = scrollTop;
}

function scrollToEnd() {
  isFollowing = true;
  find("scroll").scrollTop = find("scroll").scrollHeight;
}

function show() {
  find("welcome").hidden = turns.length > 0;
  for (const [turn, view] of views) {
    if (turns.includes(turn)) continue;
    view.node.remove();
    views.delete(turn);
  }
  turns.forEach((turn, i) => {
    if (!views.has(turn)) {
      views.set(turn, new TurnView(turn, actions));
      find("turns").append(views.get(turn).node);
    }
    const isLast = i === turns.length - 1;
    views.get(turn).update({ running: running !== null && isLast && turn.role === "model", isLast });
  });
  find("send").hidden = running !== null;
  find("stop").hidden = running === null;
  find("new").disabled = turns.length === 0;
}

const showSoon = oncePerFrame(show);

function changed() {
  show();
  kept.write("chat", turns);
  countSoon();
}

// ── Answers ─────────────────────────────────────────────────────────────────────────────────────────────────

/** The request that would be sent now. Throws FieldError. */
function nextRequest() {
  let all = [...turns, ...draftTurns()];
  // After an answer and without a draft: the request that the last answer was for.
  while (all.length && all.at(-1).role === "model") all = all.slice(0, -1);
  if (!all.length) all = [userTurn([{ part: { text: "Hello!" } }])];
  return { model: model(), request: { contents: contents(all), ...settings.request() }, hasKey: Boolean(api.key) };
}

/** Streams an answer to the conversation as it stands. */
async function answer(overrides = {}) {
  const request = { contents: contents(turns), ...settings.request() };
  request.generationConfig = { ...overrides, ...request.generationConfig };
  const turn = modelTurn();
  turn.model = shortName(model());
  turn.isJson = request.generationConfig.responseMimeType === "application/json";
  kept.write("chat", turns);
  turns.push(turn);
  running = new AbortController();
  const begin = performance.now();
  show();
  scrollToEnd();
  announce("The model answers.");
  try {
    for await (const event of api.stream(model(), request, running.signal)) {
      receive(turn, event);
      showSoon();
    }
  } catch (error) {
    fail(turn, error);
  }
  turn.seconds = (performance.now() - begin) / 1000;
  running = null;
  changed();
  announce(turn.error ? "" : `Answer: ${textOf(turn).slice(0, SPOKEN_CHARACTERS)}`);
}

function fail(turn, error) {
  if (error.name === "AbortError") {
    turn.stopped = true;
    return;
  }
  const known = error instanceof ApiError;
  turn.error = { code: known ? error.code : 0, status: known ? error.status : "", message: known ? error.message : `The answer could not be read: ${error.message}` };
  if (known && error.needsKey) demandKey();
}

/** Whether a request can be made now; otherwise says why not. */
function isReady() {
  if (running) return false;
  try {
    settings.request();
  } catch (error) {
    return showFieldError(error);
  }
  if (!model()) composer.say("There is no model to ask: the server did not list one.");
  return Boolean(model());
}

function showFieldError(error) {
  if (!(error instanceof FieldError)) throw error;
  error.field.closest("details")?.setAttribute("open", "");
  openPanel(error.field);
  composer.say(`${error.field.labels[0].textContent.trim()}: ${error.message}`);
  return false;
}

async function send() {
  const { items } = composer;
  if (!items.length || composer.isRecording || !isReady()) return;
  if (mediaBytes([...turns, userTurn(items)]) > 60e6) {
    composer.say("The pictures, sounds and videos of this chat are too large for one request: start a new chat.");
    return;
  }
  turns.push(userTurn(items));
  composer.clear();
  await answer();
}

/** Answers anew; unless a seed is set, with another one, so that sampling gives another answer. */
async function retry(turn) {
  if (!isReady()) return;
  turns = turns.slice(0, turns.indexOf(turn));
  await answer({ seed: Math.floor(Math.random() * 2 ** 31) });
}

async function edit(turn) {
  if (turn.role === "model") {
    changed();
    return;
  }
  if (!isReady()) return;
  turns = turns.slice(0, turns.indexOf(turn) + 1);
  await answer();
}

async function sendResults(turn, calls, typed) {
  if (!isReady()) return;
  turns.push(userTurn(calls.map((call, i) => ({ part: resultPart(call, typed[i]) }))));
  await answer();
  composer.focus();
}

// ── Tokens of the next request ──────────────────────────────────────────────────────────────────────────────

let countTimer = 0;
let counting = null;

function countSoon() {
  clearTimeout(countTimer);
  counting?.abort();
  const all = [...turns, ...draftTurns()];
  if (!all.length || mediaBytes(all) > MAX_COUNTED_MEDIA) find("count").textContent = "";
  else countTimer = setTimeout(count, COUNT_DELAY);
}

async function count() {
  if (running || !model()) return;
  counting = new AbortController();
  try {
    const { generationConfig, ...request } = settings.request();
    const total = await api.count(model(), { contents: contents([...turns, ...draftTurns()]), ...request }, counting.signal);
    const limit = models.find(({ name }) => name === model())?.inputTokenLimit;
    find("count").textContent = `${total.toLocaleString("en")}${limit ? ` / ${limit.toLocaleString("en")}` : ""} tokens`;
    find("count").classList.toggle("over", Boolean(limit) && total > limit);
  } catch {
    // The request itself says what is wrong with it; a number that is not known is not shown.
    find("count").textContent = "";
  }
}

// ── Models and the key ──────────────────────────────────────────────────────────────────────────────────────

async function connect() {
  try {
    models = await api.models();
  } catch (error) {
    find("model").replaceChildren(new Option("No connection", ""));
    if (error.needsKey) demandKey();
    else composer.say(error.message);
    return;
  }
  const before = kept.read("model");
  find("model").replaceChildren(...models.map(({ name }) => new Option(shortName(name), name)));
  if (models.some(({ name }) => name === before)) find("model").value = before;
  composer.say(models.length ? "" : "This server has no model that generates.");
  chooseModel();
}

function chooseModel() {
  kept.write("model", model());
  settings.describe(models.find(({ name }) => name === model()) ?? {});
  countSoon();
}

function demandKey() {
  find("connection").open = true;
  openPanel(find("key"));
  composer.say(api.key ? "The server refuses this API key: correct it under Connection." : "This server demands an API key: enter it under Connection.");
}

// ── Start ───────────────────────────────────────────────────────────────────────────────────────────────────

function newChat() {
  running?.abort();
  turns = [];
  composer.clear();
  changed();
  composer.focus();
}

function start() {
  startPanels();
  api.key = kept.read("key") ?? "";
  find("key").value = api.key;
  find("key").addEventListener("change", async (event) => {
    api.key = event.target.value.trim();
    kept.write("key", api.key);
    await connect();
  });
  find("model").addEventListener("change", chooseModel);
  find("new").addEventListener("click", newChat);
  find("stop").addEventListener("click", () => {
    running?.abort();
    composer.focus();
  });
  find("code").addEventListener("click", () => {
    try {
      codeDialog.open();
    } catch (error) {
      showFieldError(error);
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running && !document.querySelector("dialog[open]")) running.abort();
  });
  // Pictures that load after their turn is shown keep the end of the conversation in view.
  new ResizeObserver(() => isFollowing && scrollToEnd()).observe(find("turns"));
  find("scroll").addEventListener("scroll", follow, { passive: true });
  show();
  scrollToEnd();
  connect();
  if (matchMedia("(pointer: fine)").matches) composer.focus();
}

start();
