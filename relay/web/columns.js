// Tables by columns. A column is one entry of a list, [head, title, kind, cell]. `kind` is "number" for columns that are
// aligned to the right, else "". `cell` makes the <td> of a row from what the row shows. All else follows from the list.
import { h } from "./dom.js";
import { bandClass, fixed } from "./format.js";

const headRow = (columns) =>
  h(
    "tr",
    {},
    columns.map(([head, title, kind]) => h("th", { class: kind || null, title: title || null, scope: "col" }, head)),
  );

export const table = (columns, body, properties = {}) => h("table", properties, h("thead", {}, headRow(columns)), body);

export const row = (columns, one, properties = {}) =>
  h(
    "tr",
    properties,
    columns.map(([, , , cell]) => cell(one)),
  );

export const empty = (columns, text = "none") =>
  h("tr", { class: "empty" }, h("td", { colspan: columns.length }, text));

// Cells. A name is cut if it is long; its title then has the whole.
export const text = (...content) => h("td", {}, ...content);

export const number = (content, bad = false) => h("td", { class: bad ? "number bad" : "number" }, content);

export const name = (title, ...content) => h("td", { class: "name", title }, ...content);

export const mos = (value) => number(h("span", { class: `mos ${bandClass(value)}` }, fixed(value, 2)));

// What a peer may have left out.
export const named = (value) => name(value, value || "–");
