// Numbers for people. A figure that is not known is a dash, never a zero.

const UNKNOWN = "–";

export const known = (value) => value !== null && value !== undefined;

export const fixed = (value, digits) => (known(value) ? value.toFixed(digits) : UNKNOWN);

export function count(value) {
  if (!known(value)) return UNKNOWN;
  if (value >= 1e7) return `${(value / 1e6).toFixed(1)} M`;
  return Math.round(value).toLocaleString("en-US").replaceAll(",", "\u202f");
}

export function percent(value) {
  if (!known(value)) return UNKNOWN;
  if (value === 0) return "0";
  return value < 0.1 ? "<0.1" : value.toFixed(value < 10 ? 1 : 0);
}

export function sum(one, other) {
  return known(one) || known(other) ? (one ?? 0) + (other ?? 0) : null;
}

export function duration(seconds) {
  const whole = Math.floor(seconds);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (number) => String(number).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

// The lowest MOS of each band, best first. They come with each summary, so the relay alone says where a band begins.
let bands = [];

export function takeBands({ mos_bands }) {
  bands = mos_bands.map(({ mos_from }) => mos_from);
}

export function bandClass(mos) {
  const number = known(mos) ? bands.findIndex((least) => mos >= least) : -1;
  return number < 0 ? "band-none" : `band-${number}`;
}

export const words = (name) => name.replaceAll("_", " ");

// A Unix time in the local time zone, with the zone's name, because the log and the API are in UTC.
export const clockTime = (unix) =>
  new Date(unix * 1000).toLocaleTimeString("en-GB", {
    hour: "2-digit",
    minute: "2-digit",
    second: "2-digit",
    timeZoneName: "short",
  });

// The same with its day, for times that may be long ago.
export const dayTime = (unix) => {
  const at = new Date(unix * 1000);
  const day = at.toLocaleDateString("en-GB", { day: "2-digit", month: "short", year: "numeric" });
  return `${day}, ${at.toLocaleTimeString("en-GB")}`;
};

export const zone = (unix) => clockTime(unix).replace(/^\S+ /, "");
