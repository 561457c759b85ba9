// Puts the page together: the stream of summaries, the two pages, the keyboard and the theme.
//
// index.html   the frame of the page; style.css has its looks, icon.svg its icon
// app.js       begins here
// live.js      the stream of summaries, and whether it still comes
// overview.js  the first page
// table.js     its list of the worst calls
// ended.js     rows of calls that have ended
// search.js    the search for them
// call.js      the page of one call
// columns.js   tables, made of lists of columns
// charts.js    lines over time, drawn by uplot/
// format.js    numbers, times and the bands of MOS
// dom.js       elements and text
// theme.js     light or dark, before anything is drawn
import { redrawAll } from "./charts.js";
import { CallPage } from "./call.js";
import { setText } from "./dom.js";
import { clockTime, takeBands } from "./format.js";
import { Live } from "./live.js";
import { Overview } from "./overview.js";

const place = document.getElementById("page");
const overview = new Overview();
let page = null;
let latest = null;

function route() {
  const found = /^#\/call\/([0-9A-Za-z-]{1,64})$/.exec(location.hash);
  if (page !== overview) page?.remove();
  page = found ? new CallPage(found[1]) : overview;
  place.replaceChildren(page.element);
  if (latest) page.show(latest);
  if (found) scrollTo(0, 0);
}

function onSummary(summary) {
  latest = summary;
  takeBands(summary);
  setText(document.getElementById("version"), summary.version);
  setText(document.getElementById("clock"), clockTime(summary.at));
  document.getElementById("draining").hidden = !summary.draining;
  if (page !== overview) overview.showPackets(summary);
  page.show(summary);
}

function onState(state, text) {
  const live = document.getElementById("live");
  live.dataset.state = state;
  setText(live.lastElementChild, text);
  document.body.classList.toggle("stale", state === "lost" || state === "quiet");
}

function toggleTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  const next = now === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem("theme", next);
  } catch {
    // It holds until the page is loaded again.
  }
  redrawAll();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target instanceof HTMLInputElement;
  // In the filter only Escape, Enter and the arrows are commands. Other keys are typed. In the search all keys are typed.
  if (typing && event.key === "Escape" && !event.target.value) event.target.blur();
  else if (typing && event.target.id !== "filter") return;
  else if (typing && !["Escape", "Enter", "ArrowDown", "ArrowUp"].includes(event.key)) return;
  else if (event.key === "t" && !typing) toggleTheme();
  else page.onKey(event);
}

addEventListener("hashchange", route);
addEventListener("keydown", onKey);
document.getElementById("theme").addEventListener("click", toggleTheme);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
route();
new Live(onSummary, onState);
