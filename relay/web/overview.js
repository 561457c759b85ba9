// The first page: the relay as a whole, and the worst calls.
import { Chart } from "./charts.js";
import { empty, mos, number, row, table, text } from "./columns.js";
import { h, setText } from "./dom.js";
import { ENDED, endedRow } from "./ended.js";
import { count, fixed, words } from "./format.js";
import { Search } from "./search.js";
import { CallTable } from "./table.js";

const CHART_S = 600;
// The first of the bands with dissatisfied users.
const BAD_FROM = 3;

const health = (state) => h("span", { class: `health ${state}`, title: state });

const UPSTREAMS = [
  ["", "", "", (one) => text(health(one.health))],
  ["name", "", "", (one) => text(one.name)],
  ["calls", "", "number", (one) => number(count(one.flows))],
  ["RTT ms", "", "number", (one) => number(fixed(one.rtt_ms, 1))],
  ["MOS", "", "number", (one) => mos(one.mos)],
];

const upOf = ({ up, upstreams }) => h("span", { class: "muted" }, ` ${up}/${upstreams} up`);

// A region has a row among its upstreams, with cells of its own.
const REGION = [
  (region) => text(health(region.health)),
  (region) => text(region.name, upOf(region)),
  (region) => number(count(region.flows)),
];

const DROPS = [
  ["", "", "", ([reason]) => text(words(reason))],
  ["last min", "", "number", ([, , lastMinute]) => number(count(lastMinute))],
  ["all", "", "number", ([, total]) => number(count(total))],
];

export class Overview {
  constructor() {
    this.figures = {};
    const figure = (name, title) => {
      this.figures[name] = h("b", {}, "–");
      return h("div", { class: "figure", title }, this.figures[name], h("span", { class: "muted" }, name));
    };
    this.chart = h("div", { class: "chart" });
    this.bands = h("div", { class: "bands" });
    this.upstreams = h("tbody");
    this.drops = h("tbody");
    this.ended = h("tbody");
    this.table = new CallTable();
    this.search = new Search();
    this.element = h(
      "div",
      { class: "overview" },
      h(
        "section",
        { class: "figures panel" },
        figure("calls", "Flows that carry voice"),
        figure("bad now", ""),
        figure("connections", "Open TCP connections"),
        figure("packets/s ↑", "From clients to upstreams"),
        figure("packets/s ↓", "From upstreams to clients"),
        figure("drops, last minute", "Packets not forwarded"),
        figure("upstreams up", "Upstreams that answer their probes"),
        figure("users refused", "Refused by [entitlement] since the start"),
      ),
      h("section", { class: "panel traffic" }, h("h2", {}, "Packets per second"), this.chart),
      h("section", { class: "panel" }, h("h2", {}, "How calls sound now"), this.bands),
      h(
        "section",
        { class: "panel" },
        h("h2", {}, "Regions and upstreams"),
        h("div", { class: "scroll" }, table(UPSTREAMS, this.upstreams)),
      ),
      h(
        "section",
        { class: "panel" },
        h("h2", {}, "Drops by reason"),
        table(DROPS, this.drops),
      ),
      this.table.element,
      h(
        "section",
        { class: "panel ended" },
        h("h2", {}, "Bad calls that ended"),
        h("div", { class: "scroll" }, table(ENDED, this.ended)),
      ),
      this.search.element,
    );
    this.packets = new Chart(this.chart, {
      unit: "/s",
      height: 168,
      sync: "overview",
      lines: [
        { label: "uplink", colour: "--up", fill: "--up-fill" },
        { label: "downlink", colour: "--down", fill: "--down-fill" },
      ],
    });
    this.points = [[], [], []];
    this.looked = null;
    this.loadHistory();
  }

  async loadHistory() {
    try {
      const past = await (await fetch("api/history")).json();
      const first = this.points[0][0] ?? Infinity;
      const old = past.at.findIndex((at) => at >= first);
      const end = old < 0 ? past.at.length : old;
      this.points = [past.at, past.uplink, past.downlink].map((column, row) => [
        ...column.slice(0, end),
        ...this.points[row],
      ]);
    } catch {
      // Then the chart begins now.
    }
  }

  show(summary) {
    this.showFigures(summary);
    this.showPackets(summary);
    this.showBands(summary);
    this.upstreams.replaceChildren(...summary.regions.flatMap((region) => upstreamRows(region, summary.upstreams)));
    this.showDrops(summary);
    const ended = summary.ended_badly.map((call) => endedRow(ENDED, call));
    this.ended.replaceChildren(...(ended.length ? ended : [empty(ENDED)]));
    if (summary.looked_at !== this.looked) {
      this.looked = summary.looked_at;
      this.table.refresh();
    }
  }

  showFigures(summary) {
    const bad = summary.mos_bands.slice(BAD_FROM).reduce((total, one) => total + one.calls, 0);
    const dropped = Object.values(summary.drops_last_minute).reduce((total, one) => total + one, 0);
    const up = summary.upstreams.filter((one) => one.health === "up").length;
    const set = (name, text, alarm = false) => {
      setText(this.figures[name], text);
      this.figures[name].classList.toggle("bad", alarm);
    };
    set("calls", count(summary.calls));
    set("bad now", count(bad), bad > 0);
    const good = summary.mos_bands[BAD_FROM - 1].mos_from.toFixed(2);
    this.figures["bad now"].parentElement.title = `Calls with a MOS below ${good} in the last 5 s`;
    set("connections", count(summary.connections));
    set("packets/s ↑", count(summary.packets_per_s.uplink));
    set("packets/s ↓", count(summary.packets_per_s.downlink));
    set("drops, last minute", count(dropped), dropped > 0);
    set("upstreams up", `${up}/${summary.upstreams.length}`, up < summary.upstreams.length);
    const { verdicts, trouble } = summary.entitlement;
    const refused = Object.entries(verdicts).reduce(
      (total, [verdict, number]) => total + (verdict.startsWith("admitted") ? 0 : number),
      0,
    );
    set("users refused", count(refused), trouble !== "");
  }

  showPackets({ at, packets_per_s }) {
    [at, packets_per_s.uplink, packets_per_s.downlink].forEach((value, row) => this.points[row].push(value));
    const old = this.points[0].findIndex((time) => time >= at - CHART_S);
    if (old > 0) this.points = this.points.map((column) => column.slice(old));
    this.packets.set(this.points);
  }

  showBands({ mos_bands, calls, calls_unscored }) {
    const band = (name, title, number, kind) =>
      h(
        "div",
        { class: "band", title },
        h("span", {}, name),
        h(
          "div",
          { class: "bar" },
          h("i", {
            class: kind,
            style: { width: `${calls ? (100 * number) / calls : 0}%`, minWidth: number ? "2px" : "0" },
          }),
        ),
        h("span", { class: "number" }, count(number)),
      );
    this.bands.replaceChildren(
      ...mos_bands.map((one, number) =>
        band(one.name, `MOS from ${one.mos_from.toFixed(2)}: ${one.calls} of ${calls}`, one.calls, `band-${number}`),
      ),
      band("silent", "No score: nothing was heard", calls_unscored, "band-none"),
    );
  }

  showDrops({ drops, drops_last_minute }) {
    const rows = Object.entries(drops)
      .sort((one, other) => other[1] - one[1])
      .map(([reason, total]) => row(DROPS, [reason, total, drops_last_minute[reason] ?? 0]));
    this.drops.replaceChildren(...(rows.length ? rows : [empty(DROPS)]));
  }

  onKey(event) {
    if (event.key === "j" || event.key === "ArrowDown") this.table.move(1);
    else if (event.key === "k" || event.key === "ArrowUp") this.table.move(-1);
    else if (event.key === "Enter" && this.table.selected) location.hash = `#/call/${this.table.selected}`;
    else if (event.key === "/") this.table.filter.focus();
    else if (event.key === "Escape" && this.table.filter.value) {
      this.table.filter.value = "";
      this.table.refresh();
    } else return;
    event.preventDefault();
  }
}

function upstreamRows(region, upstreams) {
  const own = upstreams.filter((one) => one.region === region.name);
  const cells = UPSTREAMS.map((_, place) => REGION[place]?.(region) ?? text());
  return [
    h("tr", { class: "region" }, cells),
    ...own.map((one) => row(UPSTREAMS, one, { title: one.address ?? "no address" })),
  ];
}
