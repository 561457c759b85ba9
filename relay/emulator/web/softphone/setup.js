// What the user chooses for their voice: the transport, with the reason for it, and the microphone or a tone.
import { h, setText } from "./shared/dom.js";
import { withPortal } from "./notices.js";
import { CHOICES, chooseTransport } from "./transport.js";

const SOURCES = { microphone: "Microphone", tone: "Built-in tone" };

export class Setup {
  // onTransport(), onSource(name), onMute(muted)
  constructor({ onTransport, onSource, onMute }) {
    Object.assign(this, { onTransport, choice: sessionStorage.getItem("transport") ?? "auto", source: "" });
    this.told = h("p", { class: "transport" });
    this.setting = h("p", { class: "muted" });
    const transports = this.radios("transport", CHOICES, (name) => this.choose(name));
    this.sources = this.radios("source", SOURCES, onSource);
    const mute = h("input", { type: "checkbox", id: "mute", on: { change: () => onMute(mute.checked) } });
    const muted = h("label", { for: "mute" }, mute, " Mute what is heard");
    this.element = h(
      "section",
      { class: "panel setup", "aria-label": "Voice" },
      h("h2", {}, "Voice"),
      ...[this.told, this.setting],
      h("fieldset", {}, h("legend", {}, "Transport, from the next call on"), transports),
      h("fieldset", {}, h("legend", {}, "What you send"), this.sources),
      muted,
    );
  }

  radios(group, choices, onChoice) {
    return Object.entries(choices).map(([name, words]) => {
      const input = h("input", { type: "radio", name: group, value: name, on: { change: () => onChoice(name) } });
      input.checked = name === this.choice || name === this.source;
      return h("label", {}, input, ` ${words}`);
    });
  }

  choose(name) {
    this.choice = name;
    // It holds for this tab, also when the page is loaded again.
    sessionStorage.setItem("transport", name);
    this.show(this.settings);
    this.onTransport();
  }

  get transport() {
    return chooseTransport(this.settings, this.choice);
  }

  show(settings) {
    this.settings = settings;
    const { title, why } = this.transport;
    setText(this.told, `Transport: ${title}, because ${why}.`);
    const on = settings.voiceViaWebProxy ? "on" : "off";
    const who = "A firm administrator sets it in the portal. It counts from the next login.";
    const now = `Voice via Web Proxy is ${on} for you in region ${settings.region}. ${who}`;
    if (this.setting.textContent !== now) this.setting.replaceChildren(...withPortal(now));
  }

  showSource(name) {
    for (const label of this.sources) label.firstElementChild.checked = label.firstElementChild.value === name;
  }
}
