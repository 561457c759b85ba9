// What the page tells its user outside of the lines: problems, what was just said, and the log.
import { h, setText } from "./shared/dom.js";

// As much as fits on a screen and still can be read.
const MAX_PROBLEMS = 4;
const MAX_LOG_LINES = 500;

// A sentence with a link where it speaks of the portal, which is beside this page. It opens in a tab of its own, so that
// a call goes on.
export function withPortal(text) {
  const [before, ...after] = text.split("the portal");
  if (!after.length) return [text];
  const link = h("a", { href: "../portal/", target: "_blank", rel: "noopener" }, "the portal");
  return [before, link, after.join("the portal")];
}

export class Problems {
  constructor(place) {
    this.place = place;
    this.shown = new Map();
  }

  // The same problem again replaces the one that is shown.
  show({ key, title, text }) {
    this.clear(key);
    const close = h(
      "button",
      { type: "button", "aria-label": `Close: ${title}`, on: { click: () => this.clear(key) } },
      "✕",
    );
    const element = h(
      "div",
      { class: "problem", data: { problem: key } },
      h("div", {}, h("b", {}, title), h("p", {}, ...withPortal(text))),
      close,
    );
    this.shown.set(key, element);
    this.place.prepend(element);
    for (const oldest of [...this.shown.keys()].slice(0, -MAX_PROBLEMS)) this.clear(oldest);
  }

  clear(key) {
    this.shown.get(key)?.remove();
    this.shown.delete(key);
  }

  clearAll() {
    for (const key of [...this.shown.keys()]) this.clear(key);
  }
}

export class Log {
  // onSend() sends the text to the emulator.
  constructor(onSend) {
    this.lines = [];
    this.text = h("pre");
    const send = h("button", { type: "button", on: { click: onSend } }, "Send this log to the emulator");
    this.element = h("details", { class: "panel log" }, h("summary", {}, "What happened"), this.text, send);
  }

  add(text) {
    this.lines.push(`${new Date().toISOString().slice(11, 23)} ${text}`);
    if (this.lines.length > MAX_LOG_LINES) this.lines.shift();
    setText(this.text, this.lines.join("\n"));
  }

  toString() {
    return this.lines.join("\n");
  }
}

// For screen readers: what changed just now.
export const say = (text) => setText(document.getElementById("said"), text);
