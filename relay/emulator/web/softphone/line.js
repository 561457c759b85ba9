// A line on the page: what goes on on it, and what one can do. Elements stay, so that a held button stays held.
import { h, setText } from "./shared/dom.js";
import { KIND_NAMES, ONE_WAY } from "./state.js";

const REASONS = {
  ...{ released: "ended", declined: "declined", timeout: "not answered", left: "everyone left" },
  ...{ gone: "the other end is gone", busy: "busy (486)", unreachable: "no such number (404)" },
};

const verb = (talkers, state) => (talkers.length > 1 || talkers[0].user_id === state.me ? "talk" : "talks");

export function describe(line, state) {
  const names = (all) => all.map((one) => state.nameOf(one.user_id)).join(", ");
  const others = state.others(line);
  if (line.state === "idle") return line.reason ? `idle · last call: ${REASONS[line.reason] ?? line.reason}` : "idle";
  if (line.state === "ringing") {
    if (state.ringsHere(line)) return `${names(others.filter((one) => one.role === "caller"))} rings`;
    return line.number ? `dials ${line.number}` : `rings ${names(others)}`;
  }
  const talkers = line.participants.filter((one) => one.talking);
  const who = ONE_WAY.has(line.kind)
    ? talkers.length
      ? `${names(talkers)} ${verb(talkers, state)}`
      : "open, nobody talks"
    : "";
  const crowd = line.kind === "hoot" || line.kind === "broadcast" ? `${line.subscribers} on it` : "";
  const peers = !ONE_WAY.has(line.kind) ? (others.length ? `with ${names(others)}` : (line.number ?? "")) : "";
  return [who || line.state, peers, crowd, state.amIn(line) ? "" : "without you"].filter(Boolean).join(" · ");
}

// What the line's own button does now: {action, label}, or null.
export function mainAction(line, state, dial) {
  if (state.ringsHere(line)) return { action: "answer", label: "Answer" };
  if (state.amIn(line))
    return line.kind === "hoot" ? { action: "leave", label: "Leave" } : { action: "release", label: "Hang up" };
  if (line.kind === "hoot") return { action: "join", label: "Join" };
  if (line.kind === "broadcast" && line.state !== "idle") return { action: "join", label: "Listen" };
  if (line.state !== "idle") return null;
  if (ONE_WAY.has(line.kind) && !state.mayTalk.has(line.line)) return null;
  if (line.kind === "dial_tone" && !dial) return { action: "dial", label: "Dial" };
  return ONE_WAY.has(line.kind) ? { action: "talk", label: "Talk" } : { action: "ring", label: "Call" };
}

// Why there is nothing to press on a line, or "". Nobody should look for a button that is not there.
export function whyNothing(line, state) {
  if (state.amIn(line) || state.mayTalk.has(line.line) || !ONE_WAY.has(line.kind)) return "";
  return line.state === "idle" ? "Only its talkers can open it." : "";
}

// Whether holding a button makes sense: on an idle line that is not a hoot, it opens the line as well.
function mayTalk(line, state) {
  if (!ONE_WAY.has(line.kind) || !state.mayTalk.has(line.line)) return false;
  if (!state.amIn(line)) return line.kind !== "hoot" && line.state === "idle";
  return line.kind !== "broadcast" || state.part(line)?.role === "caller";
}

export class LineCard {
  // act(action, line number, {number}); talk(line number, on)
  constructor(number, act, talk) {
    Object.assign(this, { number, act, talk });
    this.label = h("h4");
    this.what = h("p", { class: "what" });
    this.why = h("p", { class: "what" });
    this.main = h("button", { type: "button", on: { click: () => this.onMain() } });
    this.decline = h("button", { type: "button", on: { click: () => act("release", number) } }, "Decline");
    this.hold = this.holdButton();
    this.latch = h("button", { type: "button", class: "latch", on: { click: () => this.onLatch() } }, "Latch");
    this.dial = h("input", {
      inputmode: "tel",
      maxlength: 32,
      size: 10,
      "aria-label": "Number to dial",
      placeholder: "number",
    });
    this.dial.addEventListener("keydown", (event) => event.key === "Enter" && this.onMain());
    this.meta = h("span", { class: "muted mono" }, number);
    const does = h("div", { class: "does" }, this.why, this.dial, this.main, this.decline, this.hold, this.latch);
    this.element = h("article", { class: "line", data: { line: number } }, this.label, this.what, does, this.meta);
  }

  holdButton() {
    const button = h("button", { type: "button", class: "hold" }, "Hold to talk");
    const on = () => this.talk(this.number, true);
    const off = () => !this.latched && this.talk(this.number, false);
    const isKey = (event) => event.key === " " || event.key === "Enter";
    button.addEventListener("pointerdown", (event) => {
      button.setPointerCapture(event.pointerId);
      on();
    });
    for (const name of ["pointerup", "pointercancel", "blur"]) button.addEventListener(name, off);
    button.addEventListener("keydown", (event) => {
      if (!isKey(event)) return;
      event.preventDefault();
      if (!event.repeat) on();
    });
    button.addEventListener("keyup", (event) => isKey(event) && off());
    return button;
  }

  // For those who cannot hold a key or a button: it talks until it is pressed again.
  async onLatch() {
    this.latched = !this.latched;
    await this.talk(this.number, this.latched);
    // It was refused.
    if (!this.mine) this.latched = false;
  }

  onMain() {
    const action = this.main.dataset.action;
    if (action === "dial" && !this.dial.value) this.dial.focus();
    else if (action)
      this.act(action === "dial" ? "ring" : action, this.number, action === "dial" ? { number: this.dial.value } : {});
  }

  update(line, state) {
    const mine = state.amIn(line);
    const action = mainAction(line, state);
    const talking = state.amTalking(line);
    setText(this.label, line.label);
    setText(this.what, describe(line, state));
    Object.assign(this.element.dataset, {
      state: line.state,
      mine: String(mine),
      rings: String(state.ringsHere(line)),
    });
    // For that there are two buttons of their own.
    this.main.hidden = !action || action.action === "talk";
    this.main.dataset.action = action?.action ?? "";
    setText(this.main, action?.label ?? "");
    this.main.setAttribute("aria-label", `${action?.label ?? ""} ${KIND_NAMES[line.kind]} ${line.label}`);
    const why = action ? "" : whyNothing(line, state);
    setText(this.why, why);
    this.why.hidden = !why;
    this.decline.hidden = !state.ringsHere(line);
    this.dial.hidden = action?.action !== "dial";
    this.hold.hidden = this.latch.hidden = !mayTalk(line, state);
    if (this.mine && !mine) this.latched = false;
    this.mine = mine;
    this.hold.setAttribute("aria-pressed", String(talking));
    this.latch.setAttribute("aria-pressed", String(Boolean(this.latched)));
    setText(this.hold, talking ? "You talk" : "Hold to talk");
  }
}
