// The theme and the settings panel: beside the chat on a wide screen, over it on a narrow one.

import { find } from "./dom.js";

const narrow = matchMedia("(max-width: 60rem)");
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");

function store(name, value) {
  try {
    if (value === null) localStorage.removeItem(`alhena.${name}`);
    else localStorage.setItem(`alhena.${name}`, value);
  } catch {
    // Storage is blocked: the choice holds for this visit.
  }
}

/** Switches between light and dark; a choice that equals the system's is not kept, so that the page follows the system again. */
function switchTheme() {
  const root = document.documentElement;
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : systemIsDark.matches;
  const theme = isDark ? "light" : "dark";
  if ((theme === "dark") === systemIsDark.matches) {
    delete root.dataset.theme;
    store("theme", null);
  } else {
    root.dataset.theme = theme;
    store("theme", theme);
  }
}

function setPanel(isOpen) {
  const isOver = isOpen && narrow.matches;
  find("settings").hidden = !isOpen;
  find("shade").hidden = !isOver;
  find("panel").setAttribute("aria-expanded", String(isOpen));
  for (const part of document.querySelectorAll("main, .bar, .skip")) part.inert = isOver;
}

/** Opens the settings and moves to a field of them. */
export function openPanel(field) {
  setPanel(true);
  field.scrollIntoView({ block: "center" });
  field.focus();
}

function close() {
  setPanel(false);
  find("panel").focus();
}

export function startPanels() {
  find("theme").addEventListener("click", switchTheme);
  find("panel").addEventListener("click", () => {
    const isOpen = find("settings").hidden;
    setPanel(isOpen);
    if (!narrow.matches) store("panel", isOpen ? "open" : "closed");
    if (isOpen && narrow.matches) find("close-settings").focus();
  });
  find("close-settings").addEventListener("click", close);
  find("shade").addEventListener("click", close);
  find("settings").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && narrow.matches) close();
  });
  let wanted = "open";
  try {
    wanted = localStorage.getItem("alhena.panel") ?? "open";
  } catch {
    // Storage is blocked.
  }
  const place = () => setPanel(!narrow.matches && wanted === "open");
  narrow.addEventListener("change", place);
  place();
}
