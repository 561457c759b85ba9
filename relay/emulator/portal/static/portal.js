// Fetches the calls of the overview again, as long as somebody looks at the page. The server has made HTML of them.
"use strict";

const EVERY_MS = 2000;
const calls = document.querySelector("#calls");
const live = document.querySelector("#live");
let shown = "";

async function look() {
  if (document.hidden) return;
  const answer = await fetch(calls.dataset.url, { redirect: "manual", cache: "no-store" });
  // A redirect leads to the login.
  if (answer.type === "opaqueredirect") return location.reload();
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  const text = await answer.text();
  if (text !== shown) calls.innerHTML = shown = text;
}

function say(state, text) {
  if (live.dataset.state === state) return;
  live.dataset.state = state;
  live.textContent = text;
}

async function keepLooking() {
  try {
    await look();
    say("live", "live");
  } catch {
    say("lost", "no connection: what is shown is old");
  }
  setTimeout(keepLooking, EVERY_MS);
}

document.addEventListener("visibilitychange", () => look().catch(() => {}));
keepLooking();
