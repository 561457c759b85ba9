// Calls that have ended, as rows: those that were bad, and those that a search has found.
import { mos, name, named, number, row, text } from "./columns.js";
import { clockTime, dayTime, duration, fixed, percent, sum, words } from "./format.js";
import { upstreamOf } from "./table.js";

const missing = (way) => number(percent(sum(way.lost_percent, way.late_percent)));
const jitter = (way) => number(fixed(way.jitter_ms, 1));
const unix = (time) => Date.parse(time) / 1000;

const columns = (ended) => [
  ["MOS min", "", "number", (call) => mos(call.mos_min)],
  ["user", "", "", (call) => named(call.username)],
  ["client", "", "", (call) => name(null, call.client)],
  ["server name", "", "", (call) => named(call.server_name)],
  ["upstream", "", "", (call) => name(null, ...upstreamOf(call))],
  ["lasted", "", "number", (call) => number(duration(call.age_s))],
  ["missing % ↑", "", "number", (call) => missing(call.uplink)],
  ["missing % ↓", "", "number", (call) => missing(call.downlink)],
  ["jitter ↑", "", "number", (call) => jitter(call.uplink)],
  ["jitter ↓", "", "number", (call) => jitter(call.downlink)],
  ...ended,
  ["why", "", "", (call) => name(call.detail, words(call.reason))],
];

// Of these calls all ended a moment ago.
export const ENDED = columns([["ended", "", "", (call) => text(clockTime(unix(call.ended_at)))]]);

// These may be of any day.
export const FOUND = columns([
  ["began", "", "", (call) => text(dayTime(unix(call.started_at)))],
  ["ended", "", "", (call) => text(dayTime(unix(call.ended_at)))],
]);

export function endedRow(shown, call) {
  const open = () => {
    location.hash = `#/call/${call.id}`;
  };
  return row(shown, call, { data: { call: call.id }, on: { click: open } });
}
