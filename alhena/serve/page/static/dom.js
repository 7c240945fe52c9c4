// Small helpers for DOM nodes. Nothing here, or on this page, parses HTML: text is always inserted as text.

/** An element with attributes and children; a string child is text, an attribute that is a function is a listener.
 *
 * A child may be an array of children: those of a long text are more than a call may have arguments. */
export function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(key, value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  for (const child of children.flat()) if (child != null) node.append(child);
  return node;
}

/** Sets the text of a node where it differs: the same text set anew would lose a selection in it. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const SVG = "http://www.w3.org/2000/svg";

/** An icon of the sprite in the page. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** A button that shows an icon only; its label is read aloud and shown as a tooltip. */
export function iconButton(name, label, click) {
  return el("button", { type: "button", class: "quiet square small", title: label, "aria-label": label, click }, icon(name));
}

export const find = (id) => document.getElementById(id);

/** Announces a sentence to screen readers. */
export function announce(text) {
  find("status").textContent = text;
}

/** Copies text; where the clipboard API is missing (plain HTTP), through a selection. Returns whether it was copied. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = el("textarea", { class: "visually-hidden", "aria-hidden": "true" });
    area.value = text;
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    return copied;
  }
}

/** A click listener that copies and says so on the button for a moment. */
export function copier(text) {
  return async (event) => {
    const button = event.currentTarget;
    const copied = await copyText(text());
    announce(copied ? "Copied" : "Could not copy");
    button.classList.toggle("done", copied);
    const label = button.querySelector("span");
    const before = label?.textContent;
    if (label && before !== "Copied") {
      label.textContent = copied ? "Copied" : "Could not copy";
      setTimeout(() => (label.textContent = before), 1500);
    }
    setTimeout(() => button.classList.remove("done"), 1500);
  };
}

/** Runs a function at most once a frame. */
export function oncePerFrame(work) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      work();
    });
  };
}

/** A value kept while the tab is open; storage may be blocked or full, and then nothing is kept. */
export const kept = {
  read(name) {
    try {
      return JSON.parse(sessionStorage.getItem(`alhena.${name}`));
    } catch {
      return null;
    }
  },
  write(name, value) {
    try {
      sessionStorage.setItem(`alhena.${name}`, JSON.stringify(value));
    } catch {
      this.forget(name);
    }
  },
  forget(name) {
    try {
      sessionStorage.removeItem(`alhena.${name}`);
    } catch {
      // Storage is blocked: there is nothing to forget.
    }
  },
};
