// Files to parts of a request and back to something to look at or listen to; and the microphone.

// A request has at most 64 MiB, and base64 takes four bytes for three.
export const MAX_BYTES = 44 << 20;
const MAX_TEXT_BYTES = 1 << 20;
const MAX_RECORDING_SECONDS = 300;
const SAMPLE_RATE = 16000;
const MEDIA = /^(image|audio|video)\/(?!svg)|^application\/pdf$/;
// Types that browsers do not know by the name of a file.
const TYPES = { mkv: "video/x-matroska", opus: "audio/ogg", flac: "audio/flac", aiff: "audio/aiff", aif: "audio/aiff", m4a: "audio/mp4" };

/** The part of a file: media as inline data, anything else as text. Throws Error when it is neither or too large. */
export async function readFile(file) {
  const type = file.type || TYPES[file.name.split(".").pop().toLowerCase()] || "";
  if (file.size === 0) throw new Error(`${file.name} is empty.`);
  if (MEDIA.test(type)) {
    if (file.size > MAX_BYTES) throw new Error(`${file.name} is larger than ${MAX_BYTES >> 20} MB, the most that one request holds.`);
    return { name: file.name, part: { inlineData: { mimeType: type.split(";")[0], data: await toBase64(file) } } };
  }
  if (file.size > MAX_TEXT_BYTES) throw new Error(`${file.name} has more than ${MAX_TEXT_BYTES >> 20} MB of text.`);
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    if (text.includes("\0")) throw new Error("binary");
    return { name: file.name, part: { text: `${file.name}:\n\`\`\`\n${text.trimEnd()}\n\`\`\`\n` } };
  } catch {
    throw new Error(`${file.name} is neither text nor a picture, sound, video or PDF.`);
  }
}

function toBase64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error(`The file could not be read: ${reader.error.message}`));
    reader.readAsDataURL(blob);
  });
}

const urls = new WeakMap();

/** A URL under which the page shows the inline data of a part. */
export function mediaUrl(data) {
  if (!urls.has(data)) {
    const bytes = Uint8Array.from(atob(data.data), (character) => character.charCodeAt(0));
    urls.set(data, URL.createObjectURL(new Blob([bytes], { type: data.mimeType })));
  }
  return urls.get(data);
}

/** The usual ending of a file of this type. */
export const extension = (mime) => ({ "image/jpeg": "jpg", "audio/mpeg": "mp3", "video/quicktime": "mov" })[mime] ?? mime.split("/")[1].replace(/^x-/, "");

// ── Microphone ──────────────────────────────────────────────────────────────────────────────────────────────

/** A recording from the microphone: start, then stop for a WAV file of 16 kHz, mono, 16 bits. */
export class Recorder {
  #recorder = null;
  #chunks = [];
  #timer = 0;

  get isRunning() {
    return this.#recorder !== null;
  }

  /** Asks for the microphone. ``tick`` receives the seconds recorded; ``full`` is called when the time is up. Throws Error. */
  async start(tick, full) {
    if (!navigator.mediaDevices) throw new Error("Browsers give a microphone only to pages of localhost or HTTPS.");
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
    } catch (error) {
      throw new Error(error.name === "NotAllowedError" ? "This page may not use the microphone: allow it in the browser." : "No microphone was found.");
    }
    this.#chunks = [];
    this.#recorder = new MediaRecorder(stream);
    this.#recorder.ondataavailable = (event) => this.#chunks.push(event.data);
    this.#recorder.start(1000);
    const begin = performance.now();
    tick(0);
    this.#timer = setInterval(() => {
      const seconds = (performance.now() - begin) / 1000;
      tick(seconds);
      if (seconds >= MAX_RECORDING_SECONDS) full();
    }, 250);
  }

  async stop() {
    const recorder = this.#recorder;
    this.#recorder = null;
    clearInterval(this.#timer);
    await new Promise((resolve) => {
      recorder.onstop = resolve;
      recorder.stop();
    });
    for (const track of recorder.stream.getTracks()) track.stop();
    return new File([await toWav(new Blob(this.#chunks))], "recording.wav", { type: "audio/wav" });
  }
}

async function toWav(blob) {
  const context = new AudioContext();
  try {
    const recorded = await context.decodeAudioData(await blob.arrayBuffer());
    const offline = new OfflineAudioContext(1, Math.ceil(recorded.duration * SAMPLE_RATE), SAMPLE_RATE);
    const source = offline.createBufferSource();
    source.buffer = recorded;
    source.connect(offline.destination);
    source.start();
    return writeWav((await offline.startRendering()).getChannelData(0));
  } finally {
    await context.close();
  }
}

function writeWav(samples) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, value) => [...value].forEach((character, i) => view.setUint8(at + i, character.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, SAMPLE_RATE, true);
  view.setUint32(28, 2 * SAMPLE_RATE, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((sample, i) => view.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, sample)) * 0x7fff, true));
  return view.buffer;
}
