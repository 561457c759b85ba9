// A figure with the last minute beside it, as a line in SVG.
import { h, setText, svg } from "./shared/dom.js";
import { MAX_SAMPLES } from "./quality.js";

const WIDTH = 120;
const HEIGHT = 28;

export class Figure {
  // least and most: the range of the chart; it grows if a value is larger.
  constructor(title, { unit, digits, least = 0, most, explain }) {
    Object.assign(this, { title, unit, digits, least, most });
    this.value = h("b", {}, "–");
    this.line = svg("polyline", { points: "", fill: "none" });
    const chart = svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      this.line,
    );
    this.element = h("div", { class: "figure", title: explain }, h("span", {}, title), this.value, chart);
  }

  show(values) {
    const last = values.at(-1);
    const known = last !== null && last !== undefined;
    setText(this.value, known ? `${last.toFixed(this.digits)}${this.unit && ` ${this.unit}`}` : "–");
    const top = Math.max(this.most, ...values.filter((value) => value !== null));
    const x = (number) => ((number + MAX_SAMPLES - values.length) * WIDTH) / (MAX_SAMPLES - 1);
    const y = (value) => HEIGHT - 1 - ((value - this.least) * (HEIGHT - 2)) / (top - this.least);
    const points = values.map((value, number) =>
      value === null ? null : `${x(number).toFixed(1)},${y(value).toFixed(1)}`,
    );
    this.line.setAttribute("points", points.filter(Boolean).join(" "));
  }
}
