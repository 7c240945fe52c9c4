// The field for the next message: text, attached files, recordings; files also by paste and by drag and drop.

import { announce, el, find, iconButton } from "./dom.js";
import { MAX_BYTES, Recorder, mediaUrl, readFile } from "./media.js";
import { chip } from "./parts.js";

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

export class Composer {
  #files = [];
  #prompt = find("prompt");
  #recorder = new Recorder();

  /** ``send`` is called to send what was written, ``changed`` after each change. */
  constructor(send, changed) {
    this.changed = changed;
    find("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      send();
    });
    this.#prompt.addEventListener("input", () => {
      this.say("");
      this.#grow();
      changed();
    });
    this.#prompt.addEventListener("keydown", (event) => {
      // On a phone, Enter starts a new line: there is a button to send.
      const isPhone = matchMedia("(pointer: coarse)").matches && !event.ctrlKey;
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || isPhone) return;
      event.preventDefault();
      send();
    });
    this.#listenForFiles();
    find("microphone").addEventListener("click", () => this.#record());
  }

  /** The items of a turn: files first, as a question about them stands below them. */
  get items() {
    const text = this.#prompt.value.trim();
    return [...this.#files, ...(text ? [{ part: { text } }] : [])];
  }

  get isRecording() {
    return this.#recorder.isRunning;
  }

  clear() {
    this.#files = [];
    this.#prompt.value = "";
    this.#grow();
    this.#showFiles();
    this.say("");
  }

  focus() {
    this.#prompt.focus();
  }

  /** Shows what is wrong, above the field; an empty text hides it. */
  say(text) {
    find("notice").textContent = text;
    find("notice").hidden = !text;
  }

  #grow() {
    this.#prompt.style.height = "auto";
    this.#prompt.style.height = `${Math.min(this.#prompt.scrollHeight, innerHeight * 0.4)}px`;
  }

  #listenForFiles() {
    find("attach").addEventListener("click", () => find("files").click());
    find("files").addEventListener("change", async (event) => {
      await this.add([...event.target.files]);
      event.target.value = "";
    });
    document.addEventListener("paste", (event) => {
      const files = [...event.clipboardData.files];
      if (!files.length) return;
      event.preventDefault();
      this.add(files);
    });
    const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
    const show = (isOver) => (find("drop").hidden = !isOver);
    document.addEventListener("dragover", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      show(true);
    });
    document.addEventListener("dragleave", (event) => event.relatedTarget === null && show(false));
    document.addEventListener("drop", (event) => {
      show(false);
      if (!hasFiles(event)) return;
      event.preventDefault();
      this.add([...event.dataTransfer.files]);
    });
  }

  /** Attaches files. */
  async add(files) {
    this.say("");
    for (const file of files) {
      try {
        const item = await readFile(file);
        const size = [...this.#files, item].reduce((sum, { part }) => sum + (part.inlineData?.data.length ?? 0), 0);
        if (size > (MAX_BYTES * 4) / 3) throw new Error(`These files have more than ${MAX_BYTES >> 20} MB together, the most that one request holds.`);
        this.#files.push(item);
        announce(`${file.name} attached`);
      } catch (error) {
        this.say(error.message);
      }
    }
    this.#showFiles();
    this.changed();
    this.focus();
  }

  #showFiles() {
    const list = find("attachments");
    list.hidden = !this.#files.length;
    list.replaceChildren(...this.#files.map((item) => el("li", {}, this.#fileNode(item))));
  }

  #fileNode(item) {
    const remove = iconButton("close", `Remove ${item.name}`, () => {
      this.#files = this.#files.filter((other) => other !== item);
      this.#showFiles();
      this.changed();
      this.focus();
    });
    const data = item.part.inlineData;
    if (!data?.mimeType.startsWith("image/")) return chip(item.name, remove);
    return el("span", { class: "thumbnail" }, el("img", { src: mediaUrl(data), alt: item.name }), remove);
  }

  async #record() {
    try {
      if (this.#recorder.isRunning) {
        const file = await this.#recorder.stop();
        this.#showRecording(null);
        await this.add([file]);
      } else {
        await this.#recorder.start((seconds) => this.#showRecording(seconds), () => this.#record());
        announce("Recording. Press the button again to stop.");
      }
    } catch (error) {
      this.#showRecording(null);
      this.say(error.message);
    }
  }

  #showRecording(seconds) {
    const button = find("microphone");
    const isOn = seconds !== null;
    button.setAttribute("aria-pressed", String(isOn));
    button.title = isOn ? "Stop recording" : "Record sound";
    find("recording").hidden = !isOn;
    find("recording").textContent = isOn ? clock(seconds) : "";
  }
}
