// The page of one call: who, how it sounds, and its timeline.
import { Chart, atLeast, ofMos } from "./charts.js";
import { h } from "./dom.js";
import { bandClass, clockTime, count, duration, fixed, known, percent, sum, words } from "./format.js";

const TWO_WAYS = [
  { label: "uplink ↑", colour: "--up" },
  { label: "downlink ↓", colour: "--down" },
];

export class CallPage {
  constructor(connection) {
    this.connection = connection;
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
    this.whole = h("section", { class: "panel" });
    this.streams = h("section", { class: "panel" });
    this.drops = h("section", { class: "panel" });
    this.assumptions = h("section", { class: "panel assumptions muted" });
    this.element = h(
      "div",
      { class: "call" },
      this.head,
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
      const answer = await fetch(`api/flows/${encodeURIComponent(this.connection)}`);
      if (answer.status === 404) this.gone();
      else if (answer.ok) this.render(await answer.json());
    } catch {
      // The header says that there is no connection; the next summary asks again.
    }
  }

  gone() {
    this.head.replaceChildren(
      h("h1", {}, back(), "This call is over"),
      h("p", { class: "muted" }, `The relay no longer keeps anything about connection ${this.connection}.`),
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
        fact("server name", call.server_name || "–"),
        fact("upstream", `${call.upstream} (${call.region || "–"})`),
        fact("carrier", call.carrier),
        fact("age", duration(call.age_s)),
        fact("client RTT", link ? `${fixed(link.rtt_ms, 1)} ± ${fixed(link.rtt_variation_ms, 1)} ms` : "–"),
        fact("TCP retransmits", link ? count(link.retransmits) : "–"),
        fact("waiting for it", `${count(call.queued_bytes)} bytes, ${fixed(call.queue_age_ms, 0)} ms`),
        fact("upstream heard", call.heard_s < 1 ? "now" : `${duration(call.heard_s)} ago`),
        fact("connection", call.connection),
        call.ended ? fact("ended at", clockTime(Date.parse(call.ended.at) / 1000)) : null,
      ),
    );
  }

  renderWhole(call) {
    const cells = (way) => {
      const quality = call.whole_call?.[way] ?? {};
      return [
        count(call[way].packets),
        percent(quality.lost_percent),
        percent(quality.late_percent),
        fixed(quality.jitter_ms, 1),
        fixed(quality.mos_min, 2),
        fixed(quality.mos_mean, 2),
        count(call.rtcp[way]),
      ];
    };
    const row = (name, way) =>
      h(
        "tr",
        {},
        h("td", {}, h("i", { class: `key ${way}` }), name),
        cells(way).map((text) => h("td", { class: "number" }, text)),
      );
    this.whole.replaceChildren(
      h("h2", {}, "The whole call"),
      scroll(
        ["", "packets", "lost %", "late %", "jitter ms", "MOS min", "MOS mean", "RTCP"],
        [row("uplink", "uplink"), row("downlink", "downlink")],
        1,
      ),
    );
  }

  renderDrops(call) {
    const rows = (counts, what) =>
      Object.entries(counts).map(([name, number]) =>
        h("tr", {}, h("td", {}, what, words(name)), h("td", { class: "number" }, count(number))),
      );
    const all = [...rows(call.drops, ""), ...rows(call.drops_by_traffic, "of kind: ")];
    if (call.retransmissions) all.push(...rows({ "STUN requests sent again": call.retransmissions }, ""));
    this.drops.replaceChildren(
      h("h2", {}, "Drops"),
      all.length ? scroll(["reason", "packets"], all, 1) : h("p", { class: "muted" }, "None."),
    );
  }

  renderStreams(call) {
    const row = (one) =>
      h(
        "tr",
        {},
        h("td", {}, h("i", { class: `key ${one.direction}` }), one.direction),
        h("td", { class: "mono" }, one.ssrc),
        ...[
          String(one.payload_type),
          known(one.clock_hz) ? count(one.clock_hz) : "?",
          count(one.packets),
          count(one.lost),
          count(one.late),
          fixed(one.jitter_ms, 1),
          count(one.stalls),
          fixed(one.longest_pause_ms, 0),
          count(one.reordered),
          count(one.duplicates),
          count(one.restarts),
          fixed(one.idle_s, 1),
        ].map((text) => h("td", { class: "number" }, text)),
      );
    this.streams.replaceChildren(
      h("h2", {}, "Streams"),
      call.streams.length
        ? scroll(
            [
              "direction",
              "SSRC",
              "type",
              "clock Hz",
              "packets",
              "lost",
              "late",
              "jitter ms",
              "stalls",
              "longest pause ms",
              "reordered",
              "twice",
              "restarts",
              "idle s",
            ],
            call.streams.map(row),
            2,
          )
        : h("p", { class: "muted" }, "No RTP was seen."),
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
const scroll = (heads, rows, texts) => h("div", { class: "scroll" }, table(heads, rows, texts));

// The first ``texts`` columns have words, the others numbers.
function table(heads, rows, texts) {
  return h(
    "table",
    {},
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        heads.map((name, number) => h("th", { class: number < texts ? null : "number", scope: "col" }, name)),
      ),
    ),
    h("tbody", {}, rows),
  );
}
