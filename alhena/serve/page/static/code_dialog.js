// The dialog that shows a request as a program.

import { programs } from "./code.js";
import { copier, find } from "./dom.js";

export class CodeDialog {
  #tabs = [...document.querySelectorAll("#code-dialog [role=tab]")];
  #programs = {};

  /** ``request`` returns {model, request, hasKey}. */
  constructor(request) {
    this.request = request;
    for (const tab of this.#tabs) tab.addEventListener("click", () => this.#select(tab));
    this.#tabs[0].parentElement.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const tab = this.#tabs.at((this.#tabs.indexOf(document.activeElement) + step) % this.#tabs.length);
      this.#select(tab);
      tab.focus();
    });
    find("code-close").addEventListener("click", () => find("code-dialog").close());
    find("code-dialog").addEventListener("click", (event) => event.target === event.currentTarget && event.target.close());
    find("code-copy").addEventListener("click", copier(() => find("code-text").textContent));
  }

  /** Shows the programs of the request as it stands. Throws FieldError. */
  open() {
    const { model, request, hasKey } = this.request();
    this.#programs = programs(model, request, hasKey);
    this.#select(this.#tabs.find((tab) => tab.ariaSelected === "true"));
    find("code-dialog").showModal();
  }

  #select(selected) {
    for (const tab of this.#tabs) {
      tab.setAttribute("aria-selected", String(tab === selected));
      tab.tabIndex = tab === selected ? 0 : -1;
    }
    find("code-text").textContent = this.#programs[selected.dataset.language];
    find("code-text").setAttribute("aria-labelledby", selected.id);
    find("code-text").scrollTo(0, 0);
  }
}
