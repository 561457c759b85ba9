// The first page: the relay as a whole, and the worst calls.
import { Chart } from "./charts.js";
import { h, setText } from "./dom.js";
import { bandClass, clockTime, count, duration, fixed, percent, sum, words } from "./format.js";
import { CallTable } from "./table.js";

const CHART_S = 600;
// The bands with dissatisfied users: MOS below 3.60.
const BAD_FROM = 3;

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
    this.element = h(
      "div",
      { class: "overview" },
      h(
        "section",
        { class: "figures panel" },
        figure("calls", "Flows that carry voice"),
        figure("bad now", "Calls with a MOS below 3.60 in the last 5 s"),
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
        h(
          "div",
          { class: "scroll" },
          table(["", "name", "calls|number", "RTT ms|number", "MOS|number"], this.upstreams),
        ),
      ),
      h(
        "section",
        { class: "panel" },
        h("h2", {}, "Drops by reason"),
        table(["", "last min|number", "all|number"], this.drops),
      ),
      this.table.element,
      h(
        "section",
        { class: "panel ended" },
        h("h2", {}, "Bad calls that ended"),
        h(
          "div",
          { class: "scroll" },
          table(
            [
              "MOS min|number",
              "user",
              "client",
              "server name",
              "upstream",
              "lasted|number",
              "missing % ↑|number",
              "missing % ↓|number",
              "jitter ↑|number",
              "jitter ↓|number",
              "ended",
              "why",
            ],
            this.ended,
          ),
        ),
      ),
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
    this.ended.replaceChildren(...(summary.ended_badly.length ? summary.ended_badly.map(endedRow) : [none(12)]));
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
    const row = (name, title, number, kind) =>
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
        row(one.name, `MOS from ${one.mos_from.toFixed(2)}: ${one.calls} of ${calls}`, one.calls, `band-${number}`),
      ),
      row("silent", "No score: nothing was heard", calls_unscored, "band-none"),
    );
  }

  showDrops({ drops, drops_last_minute }) {
    const rows = Object.entries(drops)
      .sort((one, other) => other[1] - one[1])
      .map(([reason, total]) =>
        h(
          "tr",
          {},
          h("td", {}, words(reason)),
          h("td", { class: "number" }, count(drops_last_minute[reason] ?? 0)),
          h("td", { class: "number" }, count(total)),
        ),
      );
    this.drops.replaceChildren(...(rows.length ? rows : [none(3)]));
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

function table(heads, body) {
  const cells = heads
    .map((head) => head.split("|"))
    .map(([name, kind]) => h("th", { class: kind, scope: "col" }, name));
  return h("table", {}, h("thead", {}, h("tr", {}, cells)), body);
}

const none = (columns) => h("tr", { class: "empty" }, h("td", { colspan: columns }, "none"));

const health = (state) => h("span", { class: `health ${state}`, title: state });

function upstreamRows(region, upstreams) {
  const own = upstreams.filter((one) => one.region === region.name);
  return [
    h(
      "tr",
      { class: "region" },
      h("td", {}, health(region.health)),
      h("td", {}, region.name, h("span", { class: "muted" }, ` ${region.up}/${region.upstreams} up`)),
      h("td", { class: "number" }, count(region.flows)),
      h("td"),
      h("td"),
    ),
    ...own.map((one) =>
      h(
        "tr",
        { title: one.address ?? "no address" },
        h("td", {}, health(one.health)),
        h("td", {}, one.name),
        h("td", { class: "number" }, count(one.flows)),
        h("td", { class: "number" }, fixed(one.rtt_ms, 1)),
        h("td", { class: "number" }, h("span", { class: `mos ${bandClass(one.mos)}` }, fixed(one.mos, 2))),
      ),
    ),
  ];
}

function endedRow(call) {
  const { uplink, downlink } = call;
  const number = (text) => h("td", { class: "number" }, text);
  return h(
    "tr",
    {
      on: {
        click: () => {
          location.hash = `#/call/${call.connection}`;
        },
      },
    },
    h("td", { class: "number" }, h("span", { class: `mos ${bandClass(call.mos_min)}` }, fixed(call.mos_min, 2))),
    h("td", { class: "name", title: call.username }, call.username || "–"),
    h("td", { class: "name" }, call.client),
    h("td", { class: "name", title: call.server_name }, call.server_name || "–"),
    h("td", { class: "name" }, call.upstream, h("span", { class: "muted" }, ` ${call.region}`)),
    number(duration(call.age_s)),
    ...[uplink, downlink].map((way) => number(percent(sum(way.lost_percent, way.late_percent)))),
    ...[uplink, downlink].map((way) => number(fixed(way.jitter_ms, 1))),
    h("td", {}, clockTime(Date.parse(call.ended_at) / 1000)),
    h("td", { class: "name", title: call.detail }, words(call.reason)),
  );
}
