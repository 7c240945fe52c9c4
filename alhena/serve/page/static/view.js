// Turns of the conversation as DOM nodes, and what a person can do with each.

import { callsOf, finishText, replaceText, textOf } from "./chat.js";
import { copier, el, icon, iconButton } from "./dom.js";
import { itemView, resultForm } from "./parts.js";

const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

/** Tokens and speed of an answer in a line. */
function usageText({ usage, seconds }) {
  if (!usage) return "";
  const out = (usage.candidatesTokenCount ?? 0) + (usage.thoughtsTokenCount ?? 0);
  const texts = [`${plural(usage.promptTokenCount ?? 0, "token")} in`, `${out.toLocaleString("en")} out`];
  if (usage.thoughtsTokenCount) texts[1] += ` (${usage.thoughtsTokenCount.toLocaleString("en")} thoughts)`;
  if (seconds >= 0.05) texts.push(`${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`);
  return texts.join(" · ");
}

/** One turn. ``actions`` has edit, retry and sendResults; ``state`` of an update: {running, isLast}.
 *
 * An answer updates all turns once a frame: nodes whose content is the same stay where they are. A new or moved one would lose the
 * focus, a selection, and a click whose button went down on the old one. */
export class TurnView {
  #views = new Map();
  #body = el("div", { class: "turn-body" });
  #foot = el("div", { class: "turn-foot" });
  #form = null;
  // What the foot shows, as JSON.
  #shownFoot = "";
  #isEditing = false;

  constructor(turn, actions) {
    this.turn = turn;
    this.actions = actions;
    const who = turn.role === "user" ? el("h3", { class: "visually-hidden" }, "You") : el("h3", { class: "who" }, icon("star"), turn.model ?? "Model");
    this.node = el("article", { class: `turn ${turn.role}` }, who, this.#body, this.#foot);
  }

  update(state) {
    const { turn } = this;
    this.state = state;
    this.node.setAttribute("aria-busy", String(state.running));
    this.node.classList.toggle("results-turn", turn.items.some(({ part }) => part.functionResponse));
    if (this.#isEditing) return;
    this.#showItems(state);
    this.#showForm(state);
    this.#showFoot(state);
  }

  #showItems(state) {
    const views = this.turn.items.map((item) => {
      if (!this.#views.has(item)) this.#views.set(item, itemView(item, this.turn.role, this.turn.isJson));
      return this.#views.get(item);
    });
    views.forEach((view, i) => view.update(state.running && i === views.length - 1));
    const nodes = views.map((view) => view.node);
    const isSilent = state.running && !this.turn.items.some(({ part }) => part.text && !part.thought);
    if (isSilent) nodes.push(this.#pulse());
    if (nodes.length !== this.#body.childNodes.length || nodes.some((node, i) => node !== this.#body.childNodes[i])) this.#body.replaceChildren(...nodes);
  }

  #pulse() {
    this.pulse ??= el("div", { class: "pulse", role: "img", "aria-label": "Working" }, el("i"), el("i"), el("i"));
    return this.pulse;
  }

  /** Asks for the results of function calls when the answer ended with calls. */
  #showForm({ running, isLast }) {
    const calls = callsOf(this.turn);
    const isWaiting = this.turn.role === "model" && calls.length > 0 && isLast && !running && !this.turn.error;
    if (isWaiting === (this.#form !== null)) return;
    this.#form?.remove();
    this.#form = isWaiting ? resultForm(calls, (typed) => this.actions.sendResults(this.turn, calls, typed)) : null;
    if (isWaiting) this.#foot.before(this.#form);
  }

  #showFoot({ running, isLast }) {
    const { turn } = this;
    const shown = running ? {} : {
      error: turn.error,
      finish: turn.error ? "" : finishText(turn),
      copies: textOf(turn) !== "",
      edits: this.#canEdit(),
      retries: turn.role === "model" && !turn.error && isLast,
      usage: usageText(turn),
    };
    if (JSON.stringify(shown) === this.#shownFoot) return;
    this.#shownFoot = JSON.stringify(shown);
    this.#foot.replaceChildren(...this.#footNodes(shown));
  }

  #footNodes({ error, finish, ...actions }) {
    const nodes = [];
    if (error) nodes.push(this.#errorNode(error));
    if (finish) nodes.push(el("p", { class: "finish" }, finish));
    const row = this.#actionRow(actions);
    if (row.hasChildNodes()) nodes.push(row);
    return nodes;
  }

  #actionRow({ copies, edits, retries, usage }) {
    const { turn } = this;
    const row = el("div", { class: "actions" });
    if (copies) row.append(iconButton("copy", "Copy", copier(() => textOf(turn))));
    if (edits) row.append(iconButton("edit", "Edit", () => this.edit()));
    if (retries) row.append(iconButton("retry", "Try again", () => this.actions.retry(turn)));
    if (usage) row.append(el("span", { class: "usage" }, usage));
    return row;
  }

  #canEdit() {
    const texts = this.turn.items.filter(({ part, name }) => typeof part.text === "string" && !part.thought && !name);
    return this.turn.role === "user" ? !this.turn.items.some(({ part }) => part.functionResponse) : texts.length === 1;
  }

  #errorNode(error) {
    const code = [error.code || "", error.status].filter(Boolean).join(" ");
    const again = el("button", { type: "button", class: "outlined", click: () => this.actions.retry(this.turn) }, icon("retry"), "Try again");
    return el("div", { class: "failure", role: "alert" }, el("strong", {}, error.title ?? "The request failed."), el("p", {}, error.message), code ? el("p", { class: "code-line" }, code) : null, again);
  }

  /** Replaces the text with a field to change it. */
  edit() {
    const isUser = this.turn.role === "user";
    const field = el("textarea", { "aria-label": isUser ? "Edit your message" : "Edit the answer", rows: "3" });
    field.value = textOf(this.turn);
    const close = () => {
      this.#isEditing = false;
      this.node.classList.remove("editing");
      this.#body.replaceChildren();
      this.update(this.state);
      this.node.querySelector("button")?.focus();
    };
    const save = () => {
      if (!field.value.trim() && !this.turn.items.some(({ part }) => part.inlineData)) return;
      replaceText(this.turn, field.value.trim());
      this.#views.clear();
      close();
      this.actions.edit(this.turn);
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") close();
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
    });
    const saveButton = el("button", { type: "button", class: "primary", click: save }, isUser ? "Send again" : "Save");
    const cancel = el("button", { type: "button", class: "quiet", click: close }, "Cancel");
    const note = el("span", { class: "note" }, isUser ? "Later turns are removed." : "The model sees this as its own words.");
    this.#isEditing = true;
    this.node.classList.add("editing");
    this.#body.replaceChildren(field, el("div", { class: "edit-row" }, saveButton, cancel, note));
    this.#foot.replaceChildren();
    this.#shownFoot = "";
    field.style.height = `${Math.min(field.scrollHeight + 4, innerHeight / 2)}px`;
    field.focus();
  }
}
