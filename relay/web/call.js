// The page of one call: who, how it sounds, and its timeline.
import { Chart, atLeast, ofMos } from "./charts.js";
import { number, row, table, text } from "./columns.js";
import { h } from "./dom.js";
import { bandClass, clockTime, count, dayTime, duration, fixed, known, percent, sum, words } from "./format.js";

const TWO_WAYS = [
  { label: "uplink ↑", colour: "--up" },
  { label: "downlink ↓", colour: "--down" },
];

const key = (way) => h("i", { class: `key ${way}` });

const quality = ({ call, way }) => call.whole_call?.[way] ?? {};

// Its rows are the two directions of a call.
const WHOLE = [
  ["", "", "", ({ way }) => text(key(way), way)],
  ["packets", "", "number", ({ call, way }) => number(count(call[way].packets))],
  ["lost %", "", "number", (one) => number(percent(quality(one).lost_percent))],
  ["late %", "", "number", (one) => number(percent(quality(one).late_percent))],
  ["jitter ms", "", "number", (one) => number(fixed(quality(one).jitter_ms, 1))],
  ["MOS min", "", "number", (one) => number(fixed(quality(one).mos_min, 2))],
  ["MOS mean", "", "number", (one) => number(fixed(quality(one).mos_mean, 2))],
  ["RTCP", "", "number", ({ call, way }) => number(count(call.rtcp[way]))],
];

const DROPS = [
  ["reason", "", "", ([reason]) => text(reason)],
  ["packets", "", "number", ([, packets]) => number(count(packets))],
];

const STREAMS = [
  ["direction", "", "", (one) => text(key(one.direction), one.direction)],
  ["SSRC", "", "", (one) => h("td", { class: "mono" }, one.ssrc)],
  ["type", "", "number", (one) => number(String(one.payload_type))],
  ["clock Hz", "", "number", (one) => number(known(one.clock_hz) ? count(one.clock_hz) : "?")],
  ["packets", "", "number", (one) => number(count(one.packets))],
  ["lost", "", "number", (one) => number(count(one.lost))],
  ["late", "", "number", (one) => number(count(one.late))],
  ["jitter ms", "", "number", (one) => number(fixed(one.jitter_ms, 1))],
  ["stalls", "", "number", (one) => number(count(one.stalls))],
  ["longest pause ms", "", "number", (one) => number(fixed(one.longest_pause_ms, 0))],
  ["reordered", "", "number", (one) => number(count(one.reordered))],
  ["twice", "", "number", (one) => number(count(one.duplicates))],
  ["restarts", "", "number", (one) => number(count(one.restarts))],
  ["idle s", "", "number", (one) => number(fixed(one.idle_s, 1))],
];

export class CallPage {
  constructor(id) {
    this.id = id;
    this.head = h("section", { class: "panel head" }, h("h1", {}, "…"));
    this.charts = [];
    const chart = (title, options) => {
      const place = h("div", { class: "chart" });
      const made = new Chart(place, { sync: "call", height: 140, ...options });
      this.charts.push(made);
      // The axis has only numbers, and the legend shows their unit only under a pointer.
      const heading = options.unit ? `${title} (${options.unit})` : title;
      return [h("section", { class: "panel" }, h("h2", {}, heading), place), made];
    };
    const [mos, mosChart] = chart("MOS, worst stream", { lines: TWO_WAYS, digits: 2, ...ofMos });
    const [missing, missingChart] = chart("Missing: lost and late", {
      lines: [
        ...TWO_WAYS,
        { label: "late ↑", colour: "--up", dash: [3, 3] },
        { label: "late ↓", colour: "--down", dash: [3, 3] },
      ],
      unit: "%",
      digits: 2,
      range: atLeast(2),
    });
    const [jitter, jitterChart] = chart("Jitter, worst stream", {
      lines: TWO_WAYS,
      unit: "ms",
      digits: 1,
      range: atLeast(10),
    });
    const [queue, queueChart] = chart("Queue to the client (p95), and its round trip", {
      lines: [
        { label: "queue", colour: "--down" },
        { label: "RTT", colour: "--muted", dash: [3, 3] },
      ],
      unit: "ms",
      digits: 1,
      range: atLeast(10),
    });
    Object.assign(this, { mosChart, missingChart, jitterChart, queueChart });
    this.sentences = h("section", { class: "panel sentences", hidden: true });
    this.whole = h("section", { class: "panel" });
    this.streams = h("section", { class: "panel streams" });
    this.drops = h("section", { class: "panel" });
    this.assumptions = h("section", { class: "panel assumptions muted" });
    this.element = h(
      "div",
      { class: "call" },
      this.head,
      this.sentences,
      mos,
      missing,
      jitter,
      queue,
      this.whole,
      this.drops,
      this.streams,
      this.assumptions,
    );
    this.looked = null;
    this.refresh();
  }

  show(summary) {
    if (summary.looked_at === this.looked) return;
    this.looked = summary.looked_at;
    this.refresh();
  }

  async refresh() {
    try {
      const answer = await fetch(`api/calls/${encodeURIComponent(this.id)}`);
      if (answer.status === 404) this.gone();
      else if (!answer.ok) this.gone((await answer.json()).error);
      else {
        const call = await answer.json();
        this.render(call);
        await this.explain(call);
      }
    } catch {
      // The header says that there is no connection; the next summary asks again.
    }
  }

  gone(why = `The relay no longer keeps anything about call ${this.id}.`) {
    this.head.replaceChildren(h("h1", {}, back(), "This call is over"), h("p", { class: "muted" }, why));
  }

  // In words. The relay says them, with times in the zone of this page.
  async explain(call) {
    const utc_offset_minutes = -new Date(call.started_at).getTimezoneOffset();
    const query = new URLSearchParams({ utc_offset_minutes });
    const answer = await fetch(`api/calls/${encodeURIComponent(this.id)}/explanation?${query}`);
    if (!answer.ok) return;
    const { sentences, times } = await answer.json();
    this.sentences.hidden = false;
    this.sentences.replaceChildren(
      h("h2", {}, `In words (times in ${times})`),
      ...sentences.map(({ text }) => h("p", {}, text)),
    );
  }

  render(call) {
    this.renderHead(call);
    const { windows } = call;
    if (windows) {
      const missing = ({ lost_percent, late_percent }) =>
        lost_percent.map((lost, number) => sum(lost, late_percent[number]));
      const { at, uplink, downlink } = windows;
      this.mosChart.set([at, uplink.mos, downlink.mos]);
      this.missingChart.set([at, missing(uplink), missing(downlink), uplink.late_percent, downlink.late_percent]);
      this.jitterChart.set([at, uplink.jitter_ms, downlink.jitter_ms]);
      this.queueChart.set([at, windows.queue_ms, windows.rtt_ms]);
    }
    this.renderWhole(call);
    this.renderDrops(call);
    this.renderStreams(call);
    this.assumptions.replaceChildren(
      h("h2", {}, "What these figures assume"),
      h(
        "ul",
        {},
        call.assumptions.map((one) => h("li", {}, one)),
      ),
    );
  }

  renderHead(call) {
    const fact = (name, text) =>
      h("div", { class: "fact" }, h("span", { class: "muted" }, name), h("span", { class: "name", title: text }, text));
    const { link } = call;
    this.head.replaceChildren(
      h(
        "h1",
        {},
        back(),
        h("span", { class: `mos large ${bandClass(call.mos)}` }, fixed(call.mos, 2)),
        h("span", { class: "who" }, call.username || call.client),
        call.ended ? h("span", { class: "badge" }, `ended: ${words(call.ended.reason)}`) : null,
      ),
      h(
        "div",
        { class: "facts" },
        fact("client", call.client),
        call.client_certificate ? fact("certificate", call.client_certificate) : null,
        fact("server name", call.server_name || "–"),
        fact("upstream", `${call.upstream} (${call.region || "–"})`),
        fact("carrier", call.carrier),
        fact("age", duration(call.age_s)),
        fact("client RTT", link ? `${fixed(link.rtt_ms, 1)} ± ${fixed(link.rtt_variation_ms, 1)} ms` : "–"),
        fact("TCP retransmits", link ? count(link.retransmits) : "–"),
        fact("waiting for it", `${count(call.queued_bytes)} bytes, ${fixed(call.queue_age_ms, 0)} ms`),
        fact("upstream heard", call.heard_s < 1 ? "now" : `${duration(call.heard_s)} ago`),
        fact("call", call.id),
        fact("began at", dayTime(Date.parse(call.started_at) / 1000)),
        call.ended ? fact("ended at", clockTime(Date.parse(call.ended.at) / 1000)) : null,
      ),
    );
  }

  renderWhole(call) {
    const ways = ["uplink", "downlink"].map((way) => ({ call, way }));
    this.whole.replaceChildren(h("h2", {}, "The whole call"), scroll(WHOLE, ways));
  }

  renderDrops(call) {
    const all = [
      ...Object.entries(call.drops).map(([reason, packets]) => [words(reason), packets]),
      ...Object.entries(call.drops_by_traffic).map(([kind, packets]) => [`of kind: ${words(kind)}`, packets]),
    ];
    if (call.retransmissions) all.push(["STUN requests sent again", call.retransmissions]);
    this.drops.replaceChildren(
      h("h2", {}, "Drops"),
      all.length ? scroll(DROPS, all) : h("p", { class: "muted" }, "None."),
    );
  }

  renderStreams(call) {
    this.streams.replaceChildren(
      h("h2", {}, "Streams"),
      call.streams.length ? scroll(STREAMS, call.streams) : h("p", { class: "muted" }, "No RTP was seen."),
    );
  }

  onKey(event) {
    if (event.key !== "Escape") return;
    event.preventDefault();
    location.hash = "#/";
  }

  remove() {
    for (const chart of this.charts) chart.remove();
  }
}

const back = () => h("a", { href: "#/", class: "back", title: "Back (Esc)" }, "←");

// A table that scrolls inside its panel if the page is narrower.
const scroll = (columns, rows) =>
  h(
    "div",
    { class: "scroll" },
    table(
      columns,
      h(
        "tbody",
        {},
        rows.map((one) => row(columns, one)),
      ),
    ),
  );
