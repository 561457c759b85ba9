// The list of calls, worst first: filter, selection by keyboard, and a row that opens a call.
import { h, setText, svg } from "./dom.js";
import { bandClass, count, duration, fixed, known, percent, sum } from "./format.js";

const SHOWN = 100;
const FILTER_DELAY_MS = 150;

const COLUMNS = [
  ["MOS", "Of the worse direction, in the last 5 s", "number"],
  ["last 2 min", "MOS of the last windows, 1 to 4.5"],
  ["user", "As the client names itself to the upstream"],
  ["client", "Its address, or its web proxy's"],
  ["server name", "What the client asked for"],
  ["upstream", "And its region"],
  ["age", "", "number"],
  ["missing % ↑", "Lost and late, from the client", "number"],
  ["missing % ↓", "Lost and late, to the client", "number"],
  ["jitter ↑", "ms, RFC 3550, the worst stream", "number"],
  ["jitter ↓", "ms, RFC 3550, the worst stream", "number"],
  ["queue", "ms, 95th percentile of the wait for the client", "number"],
  ["RTT", "ms, the client's TCP", "number"],
  ["drops", "Packets not forwarded, the whole call", "number"],
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
    const head = COLUMNS.map(([name, title, kind]) => h("th", { class: kind, title, scope: "col" }, name));
    this.element = h(
      "section",
      { class: "panel calls" },
      h("h2", {}, "Worst calls", this.note, h("span", { class: "space" }), this.filter),
      h("div", { class: "scroll" }, h("table", { id: "calls" }, h("thead", {}, h("tr", {}, head)), this.body)),
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
    this.rows = flows.map((flow) => flow.connection);
    if (!this.rows.includes(this.selected)) this.selected = null;
    this.body.replaceChildren(...flows.map(row));
    if (!flows.length) {
      this.body.append(
        h("tr", { class: "empty" }, h("td", { colspan: COLUMNS.length }, match ? "No flow matches." : "No calls now.")),
      );
    }
    this.mark();
  }

  mark() {
    for (const element of this.body.rows) {
      const chosen = this.selected !== null && element.dataset.connection === this.selected;
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

function row(flow) {
  const { uplink, downlink } = flow;
  const open = () => {
    location.hash = `#/call/${flow.connection}`;
  };
  const drops = Object.values(flow.drops).reduce((total, one) => total + one, 0);
  const number = (text, bad) => h("td", { class: bad ? "number bad" : "number" }, text);
  const missing = (way) => {
    const value = sum(way.lost_percent, way.late_percent);
    return number(percent(value), known(value) && value >= 2);
  };
  return h(
    "tr",
    { data: { connection: flow.connection }, on: { click: open } },
    h("td", { class: "number" }, h("span", { class: `mos ${bandClass(flow.mos)}` }, fixed(flow.mos, 2))),
    h("td", {}, trail(flow.mos_trail)),
    h("td", { class: "name", title: flow.username }, flow.username || "–"),
    h("td", { class: "name" }, flow.client),
    h("td", { class: "name", title: flow.server_name }, flow.server_name || "–"),
    h("td", { class: "name", title: flow.region }, flow.upstream, h("span", { class: "muted" }, ` ${flow.region}`)),
    number(duration(flow.age_s)),
    missing(uplink),
    missing(downlink),
    number(fixed(uplink.jitter_ms, 1), uplink.jitter_ms >= 30),
    number(fixed(downlink.jitter_ms, 1), downlink.jitter_ms >= 30),
    number(fixed(flow.queue_ms, flow.queue_ms >= 10 ? 0 : 1), flow.queue_ms >= 100),
    number(fixed(flow.rtt_ms, flow.rtt_ms >= 10 ? 0 : 1)),
    number(drops ? count(drops) : "0", drops > 0),
  );
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
