// The calls on the page: whether voice flows, over which path, and how it sounds.
import { h, setText } from "./shared/dom.js";
import { Figure } from "./charts.js";
import { judge } from "./quality.js";

const FIGURES = {
  mos: ["MOS", { unit: "", digits: 2, least: 1, most: 4.5, explain: "1 is bad, 4.4 is the best. E-model of G.107" }],
  lossPercent: [
    "missing",
    { unit: "%", digits: 1, most: 5, explain: "Packets that were lost, or came too late to be played" },
  ],
  jitterMs: ["jitter", { unit: "ms", digits: 1, most: 30, explain: "How unevenly packets come (RFC 3550)" }],
  delayMs: [
    "delay",
    { unit: "ms", digits: 1, most: 150, explain: "One way through the network: half of the round trip of ICE" },
  ],
  bufferMs: [
    "buffer",
    { unit: "ms", digits: 0, most: 150, explain: "How long packets wait in the browser before they are played" },
  ],
};

const SOUNDS = {
  good: "voice flows",
  poor: "voice flows, but it sounds poor",
  bad: "voice flows, but it is hard to understand",
};

const size = (bytes) => (bytes < 10_000 ? `${bytes ?? 0} bytes` : `${(bytes / 1000).toFixed(0)} kB`);

class CallPanel {
  constructor(call, state) {
    Object.assign(this, { call, state });
    this.title = h("h3");
    this.status = h("p", { class: "status" });
    this.figures = Object.entries(FIGURES).map(([name, [title, options]]) => [name, new Figure(title, options)]);
    this.why = h("p", { class: "why" });
    this.path = h("p", { class: "muted path" });
    this.counts = h("p", { class: "muted counts" });
    this.chart = h(
      "div",
      { class: "figures" },
      this.figures.map(([, figure]) => figure.element),
    );
    this.element = h(
      "article",
      { class: "call", data: { call: call.callId } },
      this.title,
      this.status,
      this.why,
      this.chart,
      this.counts,
      this.path,
    );
  }

  update() {
    const { call, state } = this;
    const peers = [...call.peers.values()];
    const count = (wanted) => peers.filter((peer) => peer.pc.connectionState === wanted).length;
    const connected = count("connected");
    setText(this.title, call.line.label);
    const names = peers.map((peer) => state.nameOf(peer.userId)).join(", ");
    const failed = peers.some((peer) => peer.hasFailed);
    const { level, why } = connected ? judge(call.meter.samples) : { level: "good", why: "" };
    const word = connected ? SOUNDS[level] : failed ? "no voice" : peers.length ? this.waiting(peers) : this.alone();
    setText(this.status, names ? `${word} · ${names}` : word);
    setText(this.why, why);
    this.why.hidden = !why;
    this.element.dataset.quality = level;
    this.element.dataset.media = connected ? "connected" : failed ? "failed" : "waiting";
    this.showQuality();
  }

  waiting(peers) {
    if (peers.some((peer) => peer.worked)) return "voice is interrupted";
    const found = peers.map((peer) => peer.waitsFor).find(Boolean);
    return found ? `connecting: ${found}` : "connecting";
  }

  alone() {
    if (this.call.line.kind === "dial_tone") return "The emulator answers numbers itself, without voice";
    return this.call.talks ? "nobody hears you yet" : "nobody talks yet";
  }

  showQuality() {
    const { samples, latest, path } = this.call.meter;
    // Before the first packet there is nothing to show.
    this.chart.hidden = !samples.some((sample) => sample?.packetsSent || sample?.packetsReceived);
    for (const [name, figure] of this.figures) figure.show(samples.map((sample) => sample?.[name] ?? null));
    const ears = latest?.of ? `${latest.of}, ${latest.codec}${latest.provisional ? " (our own values)" : ""}` : "";
    const packets = latest
      ? `${latest.packetsSent} packets sent, ${latest.packetsReceived} received`
      : "no packets yet";
    setText(this.counts, [packets, ears].filter(Boolean).join(" · "));
    Object.assign(this.element.dataset, { sent: latest?.packetsSent ?? 0, received: latest?.packetsReceived ?? 0 });
    if (!path) return;
    const bytes = `${size(path.bytesSent)} out, ${size(path.bytesReceived)} in`;
    setText(this.path, `${path.over} (${path.url}) · ${path.local} ↔ ${path.remote} (${path.remoteType}) · ${bytes}`);
  }
}

export class CallList {
  constructor() {
    this.panels = new Map();
    this.none = h("p", { class: "muted" }, "No call with voice now.");
    this.list = h("div", { class: "calls" }, this.none);
    this.element = h(
      "section",
      { class: "panel going-on", "aria-label": "Calls" },
      h("h2", {}, "Calls, and how they sound"),
      this.list,
    );
  }

  update(calls, state) {
    for (const [callId, panel] of this.panels) {
      if (calls.has(callId)) continue;
      panel.element.remove();
      this.panels.delete(callId);
    }
    for (const [callId, call] of calls) {
      if (!this.panels.has(callId)) {
        this.panels.set(callId, new CallPanel(call, state));
        this.list.append(this.panels.get(callId).element);
      }
      this.panels.get(callId).update();
    }
    this.none.hidden = calls.size > 0;
  }
}
