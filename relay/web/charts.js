// Line charts over time, all in one style, with the theme's colours.
/* global uPlot */
import { clockTime, zone } from "./format.js";

const charts = new Set();

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const shortest = (value) => (value >= 1e6 ? `${value / 1e6} M` : value >= 1e4 ? `${value / 1e3} k` : String(value));

function timeOf(at, number, ticks) {
  const seconds = ticks.length > 1 && ticks[1] - ticks[0] < 60;
  return new Date(at * 1000).toLocaleTimeString("en-GB", {
    hour: "2-digit",
    minute: "2-digit",
    second: seconds ? "2-digit" : undefined,
  });
}

function options(chart, width) {
  const axis = {
    stroke: colour("--muted"),
    font: "11px system-ui, sans-serif",
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { show: false },
  };
  const value = (_, raw) => (raw === null || raw === undefined ? "–" : `${raw.toFixed(chart.digits)} ${chart.unit}`);
  return {
    width,
    height: chart.height,
    // On the right: half of the last label's width, because labels are centred below their lines.
    padding: [8, 26, 0, 0],
    cursor: { sync: { key: chart.sync }, points: { size: 6 }, drag: { x: true, y: false } },
    legend: { live: true },
    scales: { y: { range: (_, low, high) => chart.range(low, high) } },
    axes: [
      { ...axis, size: 24, space: 52, values: (_, ticks) => ticks.map(timeOf) },
      { ...axis, size: 44, splits: chart.splits, values: (_, ticks) => ticks.map(shortest) },
    ],
    series: [
      { label: `time (${zone(Date.now() / 1000)})`, value: (_, raw) => (raw ? clockTime(raw) : "–") },
      ...chart.lines.map((line) => ({
        label: line.label,
        stroke: colour(line.colour),
        width: 1.6,
        dash: line.dash,
        fill: line.fill ? colour(line.fill) : undefined,
        points: { size: 4 },
        value,
      })),
    ],
  };
}

// lines: [{label, colour: "--up", dash, fill}]. ``range`` gets the smallest and the largest value, which may be null.
export class Chart {
  constructor(place, { lines, height = 150, unit = "", digits = 0, sync = "page", range = fromNought, splits }) {
    Object.assign(this, { place, lines, height, unit, digits, sync, range, splits });
    this.data = [[], ...lines.map(() => [])];
    this.plot = null;
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(place);
    charts.add(this);
  }

  set(data) {
    this.data = data;
    if (this.plot) this.plot.setData(data);
    else this.draw();
  }

  // A chart that is not on the page has no width. It is drawn when it is shown.
  draw() {
    const width = this.place.clientWidth;
    this.plot?.destroy();
    this.plot = null;
    if (!width) return;
    this.plot = new uPlot(options(this, width), this.data, this.place);
  }

  resize() {
    const width = this.place.clientWidth;
    if (!this.plot) this.draw();
    else if (width && width !== this.plot.width) this.plot.setSize({ width, height: this.height });
  }

  remove() {
    this.observer.disconnect();
    this.plot?.destroy();
    charts.delete(this);
  }
}

export function fromNought(_, high) {
  return [0, high > 0 ? high * 1.1 : 1];
}

export function atLeast(least) {
  return (_, high) => [0, Math.max(least, (high ?? 0) * 1.1)];
}

export const ofMos = { range: () => [1, 4.6], splits: () => [1, 2, 3, 4] };

export function redrawAll() {
  for (const chart of charts) chart.draw();
}
