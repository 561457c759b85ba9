// The list of calls, worst first: filter, selection by keyboard, and a row that opens a call.
import { empty, mos, name, named, number, row, table, text } from "./columns.js";
import { h, setText, svg } from "./dom.js";
import { count, duration, fixed, known, percent, sum } from "./format.js";

const SHOWN = 100;
const FILTER_DELAY_MS = 150;

const missing = (way) => {
  const value = sum(way.lost_percent, way.late_percent);
  return number(percent(value), known(value) && value >= 2);
};
const jitter = (way) => number(fixed(way.jitter_ms, 1), way.jitter_ms >= 30);
const milliseconds = (value) => fixed(value, value >= 10 ? 0 : 1);
const allDrops = (flow) => Object.values(flow.drops).reduce((total, one) => total + one, 0);

const COLUMNS = [
  ["MOS", "Of the worse direction, in the last 5 s", "number", (flow) => mos(flow.mos)],
  ["last 2 min", "MOS of the last windows, 1 to 4.5", "", (flow) => text(trail(flow.mos_trail))],
  ["user", "As the client names itself to the upstream", "", (flow) => named(flow.username)],
  ["client", "Its address, or its web proxy's", "", (flow) => name(null, flow.client)],
  ["server name", "What the client asked for", "", (flow) => named(flow.server_name)],
  ["upstream", "And its region", "", (flow) => name(flow.region, ...upstreamOf(flow))],
  ["age", "", "number", (flow) => number(duration(flow.age_s))],
  ["missing % ↑", "Lost and late, from the client", "number", (flow) => missing(flow.uplink)],
  ["missing % ↓", "Lost and late, to the client", "number", (flow) => missing(flow.downlink)],
  ["jitter ↑", "ms, RFC 3550, the worst stream", "number", (flow) => jitter(flow.uplink)],
  ["jitter ↓", "ms, RFC 3550, the worst stream", "number", (flow) => jitter(flow.downlink)],
  [
    "queue",
    "ms, 95th percentile of the wait for the client",
    "number",
    (flow) => number(milliseconds(flow.queue_ms), flow.queue_ms >= 100),
  ],
  ["RTT", "ms, the client's TCP", "number", (flow) => number(milliseconds(flow.rtt_ms))],
  [
    "drops",
    "Packets not forwarded, the whole call",
    "number",
    (flow) => number(count(allDrops(flow)), allDrops(flow) > 0),
  ],
];

export class CallTable {
  constructor() {
    this.filter = h("input", {
      type: "search",
      id: "filter",
      placeholder: "filter: user, client, server name, upstream",
      "aria-label": "filter",
      autocomplete: "off",
      spellcheck: "false",
      maxlength: 200,
      on: { input: () => this.onFilter() },
    });
    this.note = h("span", { class: "muted" });
    this.body = h("tbody");
    this.element = h(
      "section",
      { class: "panel calls" },
      h("h2", {}, "Worst calls", this.note, h("span", { class: "space" }), this.filter),
      h("div", { class: "scroll" }, table(COLUMNS, this.body, { id: "calls" })),
    );
    this.rows = [];
    this.selected = null;
    this.asked = 0;
    this.timer = 0;
  }

  onFilter() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.refresh(), FILTER_DELAY_MS);
  }

  // Asks again. An answer is not shown if a later request has overtaken it.
  async refresh() {
    const question = ++this.asked;
    const match = this.filter.value.trim();
    try {
      const answer = await fetch(`api/flows?${new URLSearchParams({ limit: SHOWN, match })}`);
      if (!answer.ok) return;
      const found = await answer.json();
      if (question === this.asked) this.show(found, match);
    } catch {
      // The header says that there is no connection; the next summary asks again.
    }
  }

  show({ flows, total }, match) {
    const what = match ? `match “${match}”` : "flows";
    setText(this.note, total > flows.length ? `${flows.length} of ${count(total)} ${what}` : `${count(total)} ${what}`);
    this.rows = flows.map((flow) => flow.id);
    if (!this.rows.includes(this.selected)) this.selected = null;
    this.body.replaceChildren(...flows.map(rowOf));
    if (!flows.length) this.body.append(empty(COLUMNS, match ? "No flow matches." : "No calls now."));
    this.mark();
  }

  mark() {
    for (const element of this.body.rows) {
      const chosen = this.selected !== null && element.dataset.call === this.selected;
      element.toggleAttribute("aria-selected", chosen);
      if (chosen) element.scrollIntoView({ block: "nearest" });
    }
  }

  move(step) {
    if (!this.rows.length) return;
    const now = this.rows.indexOf(this.selected);
    const next = now < 0 ? (step > 0 ? 0 : this.rows.length - 1) : now + step;
    this.selected = this.rows[Math.min(Math.max(next, 0), this.rows.length - 1)];
    this.mark();
  }
}

export const upstreamOf = ({ upstream, region }) => [upstream, h("span", { class: "muted" }, ` ${region}`)];

function rowOf(flow) {
  const open = () => {
    location.hash = `#/call/${flow.id}`;
  };
  return row(COLUMNS, flow, { data: { call: flow.id }, on: { click: open } });
}

// A line through the last windows: MOS 1 at the bottom, 4.5 at the top.
function trail(values) {
  const [width, height] = [72, 16];
  const step = width / 23;
  const offset = width - (values.length - 1) * step;
  const lines = [[]];
  values.forEach((mos, number) => {
    if (known(mos))
      lines
        .at(-1)
        .push(`${(offset + number * step).toFixed(1)},${(height - 1 - ((mos - 1) / 3.5) * (height - 2)).toFixed(1)}`);
    else lines.push([]);
  });
  return svg(
    "svg",
    { class: "trail", viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" },
    ...lines.filter((line) => line.length > 1).map((line) => svg("polyline", { points: line.join(" ") })),
  );
}
