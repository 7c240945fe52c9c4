// Markdown to DOM nodes: headings, paragraphs, lists, quotes, tables, code, bold, italic. Text is inserted as text only; links and
// HTML stay as they are written. Each character is looked at a bounded number of times, so that no text can hang the page.

import { copier, el, icon } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,}) *([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6}) +(.*)$/;
const RULE = /^ {0,3}(?:(?:- *){3,}|(?:\* *){3,}|(?:_ *){3,})$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: +|$)/;
const QUOTE = /^ {0,3}> ?/;
const TABLE_RULE = /^ *\|? *:?-+:? *(?:\| *:?-+:? *)*\|? *$/;
const MAX_DEPTH = 8;

// ── Blocks ──────────────────────────────────────────────────────────────────────────────────────────────────

/** Blocks of lines as {kind, lines, …}. */
function readBlocks(lines) {
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const block = readFence(lines, at) ?? readLine(lines, at) ?? readQuote(lines, at) ?? readList(lines, at) ?? readTable(lines, at) ?? readParagraph(lines, at);
    blocks.push(block);
    at = block.end;
  }
  return blocks;
}

function readFence(lines, at) {
  const open = FENCE.exec(lines[at]);
  if (!open) return null;
  let end = at + 1;
  const closes = (line) => line.trim().startsWith(open[1]) && !line.trim().replaceAll(open[1][0], "");
  while (end < lines.length && !closes(lines[end])) end += 1;
  return { kind: "code", language: open[2].trim().split(" ")[0], lines: lines.slice(at + 1, end), end: end + 1 };
}

function readLine(lines, at) {
  if (RULE.test(lines[at])) return { kind: "rule", lines: [], end: at + 1 };
  const heading = HEADING.exec(lines[at]);
  return heading && { kind: "heading", level: heading[1].length, lines: [heading[2].replace(/ +#+ *$/, "")], end: at + 1 };
}

function readQuote(lines, at) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  return end === at ? null : { kind: "quote", lines: lines.slice(at, end).map((line) => line.replace(QUOTE, "")), end };
}

function readList(lines, at) {
  const first = ITEM.exec(lines[at]);
  if (!first) return null;
  const isOrdered = /\d/.test(first[2]);
  const items = [];
  let end = at;
  for (; end < lines.length; end += 1) {
    const line = lines[end];
    const item = ITEM.exec(line);
    const indent = line.length - line.trimStart().length;
    if (item && item[1].length <= first[1].length + 1) {
      if (/\d/.test(item[2]) !== isOrdered || RULE.test(line)) break;
      items.push({ width: item[0].length, lines: [line.slice(item[0].length)] });
    } else if (!line.trim()) {
      const next = lines.slice(end + 1).find((l) => l.trim()) ?? "";
      if (!ITEM.test(next) && next.length - next.trimStart().length < 2) break;
      items.at(-1).lines.push("");
    } else if (indent > first[1].length || !startsBlock(lines, end)) {
      items.at(-1).lines.push(line.slice(Math.min(indent, items.at(-1).width)));
    } else {
      break;
    }
  }
  return { kind: isOrdered ? "ordered" : "bullets", start: parseInt(first[2], 10), items: items.map((item) => item.lines), lines: lines.slice(at, end), end };
}

function cells(line) {
  return line.trim().replace(/^\|/, "").replace(/\|$/, "").split("|").map((cell) => cell.trim());
}

function readTable(lines, at) {
  if (!lines[at].includes("|") || at + 1 >= lines.length || lines[at + 1].length > 2000 || !TABLE_RULE.test(lines[at + 1])) return null;
  const header = cells(lines[at]);
  if (cells(lines[at + 1]).length !== header.length) return null;
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  return { kind: "table", header, rows: lines.slice(at + 2, end).map(cells), lines: lines.slice(at, end), end };
}

function startsBlock(lines, at) {
  const line = lines[at];
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line) || readTable(lines, at) !== null;
}

function readParagraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !startsBlock(lines, end)) end += 1;
  return { kind: "paragraph", lines: lines.slice(at, end), end };
}

// ── Nodes ───────────────────────────────────────────────────────────────────────────────────────────────────

function blockNodes(lines, depth) {
  return depth > MAX_DEPTH ? [lines.join("\n")] : readBlocks(lines).map((block) => blockNode(block, depth));
}

function listItem(lines, depth) {
  const [first, ...others] = blockNodes(lines, depth + 1);
  // A single paragraph at the start of an item needs no margin of its own.
  return el("li", {}, first?.nodeName === "P" ? [...first.childNodes] : first, others);
}

function blockNode(block, depth = 0) {
  const text = block.lines.join("\n");
  if (block.kind === "code") return codeNode(text, block.language);
  if (block.kind === "rule") return el("hr");
  // The page and its turns have headings of levels one to three.
  if (block.kind === "heading") return el(`h${Math.min(block.level + 3, 6)}`, {}, inlineNodes(text));
  if (block.kind === "quote") return el("blockquote", {}, blockNodes(block.lines, depth + 1));
  if (block.kind === "bullets") return el("ul", {}, block.items.map((lines) => listItem(lines, depth)));
  if (block.kind === "ordered") return el("ol", { start: block.start }, block.items.map((lines) => listItem(lines, depth)));
  if (block.kind === "table") return tableNode(block);
  return el("p", {}, inlineNodes(text));
}

/** Code under its language or another title, with a button that copies it: its ``current`` text where that changes. */
export function codeNode(text, title, current = () => text) {
  const copy = el("button", { type: "button", class: "quiet small", click: copier(current) }, icon("copy"), el("span", {}, "Copy"));
  const head = el("div", { class: "code-head" }, el("span", {}, title || "Code"), copy);
  return el("div", { class: "code" }, head, el("pre", { tabindex: "0", "aria-label": title || "Code" }, el("code", {}, text)));
}

function tableNode({ header, rows }) {
  const row = (cells, name) => el("tr", {}, header.map((_, i) => el(name, {}, inlineNodes(cells[i] ?? ""))));
  const table = el("table", {}, el("thead", {}, row(header, "th")), el("tbody", {}, rows.map((cells) => row(cells, "td"))));
  return el("div", { class: "table", tabindex: "0", role: "group", "aria-label": "Table" }, table);
}

// Longer marks first: the first that matches wins.
const MARKS = [
  ["**", "strong"],
  ["__", "strong"],
  ["~~", "del"],
  ["*", "em"],
  ["_", "em"],
];
const isWord = (character) => character !== undefined && /[\p{L}\p{N}]/u.test(character);
const isSpace = (character) => character === undefined || /\s/.test(character);

/** Index of the mark that closes a span which starts at ``from``, or -1. */
function closing(text, mark, from) {
  for (let at = text.indexOf(mark, from); at >= 0; at = text.indexOf(mark, at + 1)) {
    if (at > from && !isSpace(text[at - 1]) && !isWord(text[at + mark.length]) && text[at + mark.length] !== mark[0]) return at;
  }
  return -1;
}

/** Nodes of a line of text: code, bold, italic, struck. */
export function inlineNodes(text, depth = 0) {
  const nodes = [];
  // A mark without a closing one has none further on either: it is searched once.
  const unclosed = new Set();
  let plain = "";
  const flush = () => {
    if (plain) nodes.push(plain);
    plain = "";
  };
  for (let at = 0; at < text.length; ) {
    if (text[at] === "\\" && /[\\`*_~#|>[\](){}+\-.!]/.test(text[at + 1] ?? "")) {
      plain += text[at + 1];
      at += 2;
      continue;
    }
    const span = text[at] === "`" ? codeSpan(text, at, unclosed) : markedSpan(text, at, depth, unclosed);
    if (span) {
      flush();
      nodes.push(span.node);
      at = span.end;
    } else {
      plain += text[at];
      at += 1;
    }
  }
  flush();
  return nodes;
}

function codeSpan(text, at, unclosed) {
  let length = 1;
  while (text[at + length] === "`" && length < 8) length += 1;
  const mark = "`".repeat(length);
  const end = unclosed.has(mark) ? -1 : text.indexOf(mark, at + length);
  if (end < 0) {
    unclosed.add(mark);
    return null;
  }
  return { node: el("code", {}, text.slice(at + length, end).trim() || mark), end: end + length };
}

function markedSpan(text, at, depth, unclosed) {
  const found = MARKS.find(([mark]) => text.startsWith(mark, at));
  if (!found || depth > MAX_DEPTH) return null;
  const [mark, name] = found;
  const start = at + mark.length;
  if (unclosed.has(mark) || isSpace(text[start]) || isWord(text[at - 1])) return null;
  const end = closing(text, mark, start);
  if (end < 0) {
    unclosed.add(mark);
    return null;
  }
  return { node: el(name, {}, inlineNodes(text.slice(start, end), depth + 1)), end: end + mark.length };
}

/** A text that grows: blocks that did not change keep their nodes, and with them the reader's selection. */
export class MarkdownView {
  node = el("div", { class: "prose" });
  #keys = [];

  update(text) {
    const blocks = readBlocks(text.replaceAll("\r\n", "\n").replaceAll("\t", "    ").split("\n"));
    const keys = blocks.map((block) => `${block.kind} ${block.language ?? block.level ?? ""} ${block.lines.join("\n")}`);
    let same = 0;
    while (same < keys.length && keys[same] === this.#keys[same]) same += 1;
    while (this.node.childNodes.length > same) this.node.lastChild.remove();
    for (const block of blocks.slice(same)) this.node.append(blockNode(block));
    this.#keys = keys;
  }
}
