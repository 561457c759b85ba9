// The user's lines by kind, their buttons, and their colleagues.
import { h, setText } from "./shared/dom.js";
import { LineCard, describe, mainAction, whyNothing } from "./line.js";
import { KIND_NAMES } from "./state.js";

const PRESENCE_WORDS = { do_not_disturb: "do not disturb" };

export class Board {
  constructor(act, talk) {
    Object.assign(this, { act, talk });
    this.buttons = [];
    this.cards = new Map();
    this.keys = h("div", { class: "keys" });
    this.lines = h("div", { class: "kinds" });
    this.people = h("ul", { class: "people" });
    this.element = h(
      "div",
      { class: "board" },
      h("section", { class: "panel", "aria-label": "Buttons" }, h("h2", {}, "Buttons"), this.keys),
      h("section", { class: "panel", "aria-label": "Lines" }, h("h2", {}, "Lines"), this.lines),
      h("section", { class: "panel", "aria-label": "Colleagues" }, h("h2", {}, "Colleagues"), this.people),
    );
  }

  // The lines or the buttons are others than before.
  rebuild(state, buttons) {
    this.buttons = [...buttons].sort((one, other) => one.position - other.position);
    this.cards = new Map([...state.lines.keys()].map((number) => [number, new LineCard(number, this.act, this.talk)]));
    this.keys.replaceChildren(...this.buttons.map((button) => this.key(button)));
    if (!this.buttons.length) this.keys.append(h("p", { class: "muted" }, "You have no buttons. Use the lines below."));
    this.lines.replaceChildren(...Object.keys(KIND_NAMES).flatMap((kind) => this.kind(kind, state)));
    this.update(state);
  }

  // Someone else's dial tone has rung here, or is over.
  lacks(state) {
    return state.lines.size !== this.cards.size || [...state.lines.keys()].some((number) => !this.cards.has(number));
  }

  key(button) {
    const what = h("span", { class: "what" });
    const press = () => this.press(button);
    const label = h("span", {}, h("kbd", {}, String(button.position)), ` ${button.label}`);
    return h(
      "button",
      { type: "button", class: "key", data: { line: button.line }, on: { click: press } },
      label,
      what,
    );
  }

  kind(kind, state) {
    const cards = [...state.lines.values()]
      .filter((line) => line.kind === kind)
      .map((line) => this.cards.get(line.line));
    if (!cards.length) return [];
    const shown = h(
      "div",
      { class: "cards" },
      cards.map((card) => card.element),
    );
    return [h("section", { "aria-label": KIND_NAMES[kind] }, h("h3", {}, KIND_NAMES[kind]), shown)];
  }

  // The button at a position does what its line offers now.
  press(button) {
    const line = this.state?.lines.get(button.line);
    const does = line && mainAction(line, this.state, button.dial);
    if (does?.action === "dial") this.cards.get(button.line).dial.focus();
    else if (does?.action === "talk") this.cards.get(button.line).onLatch();
    else if (does)
      this.act(does.action, button.line, button.dial && does.action === "ring" ? { number: button.dial } : {});
  }

  pressAt(position) {
    const button = this.buttons.find((one) => one.position === position);
    if (button) this.press(button);
  }

  update(state) {
    this.state = state;
    for (const [number, card] of this.cards) card.update(state.lines.get(number), state);
    this.buttons.forEach((button, number) => {
      const line = state.lines.get(button.line);
      const key = this.keys.children[number];
      const why = line && !mainAction(line, state, button.dial) ? whyNothing(line, state) : "";
      key.disabled = !line || Boolean(why);
      setText(key.lastElementChild, line ? why || describe(line, state) : "not one of your lines");
      if (line)
        Object.assign(key.dataset, {
          state: line.state,
          mine: String(state.amIn(line)),
          rings: String(state.ringsHere(line)),
        });
    });
    this.showPeople(state);
  }

  showPeople(state) {
    const people = [...state.users.values()].filter((user) => user.user_id !== state.me);
    people.sort((one, other) => one.name.localeCompare(other.name));
    const entry = (user) => {
      const presence = state.presence.get(user.user_id) ?? "offline";
      const dot = h("i", { "aria-hidden": "true" });
      const words = h("span", { class: "muted" }, `${PRESENCE_WORDS[presence] ?? presence} · ${user.firm}`);
      return h("li", { data: { presence } }, dot, h("span", {}, `${user.name} `, words));
    };
    this.people.replaceChildren(...people.map(entry));
  }
}
