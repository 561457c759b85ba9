// Puts the page together: login and logout, incoming calls, the keyboard and the theme.
//
// index.html    the frame of the page; style.css has its looks, icon.svg its icon; shared/ is the dashboard's
// app.js        begins here
// login.js      the form
// session.js    a user who is logged in
// rest.js       login, settings, credentials, log
// signaling.js  socket.io, with a deadline for each answer
// state.js      lines, presence, colleagues, as signaling tells them
// board.js      lines by kind, buttons, colleagues on the page
// line.js       one line on the page
// setup.js      transport, microphone, mute
// transport.js  which TURN servers, and why
// call.js       the media of one call
// peer.js       one WebRTC connection
// quality.js    getStats to loss, jitter, delay, MOS
// emodel.js     delay and loss to MOS
// calls.js      calls on the page, with their quality
// charts.js     a figure and its last minute
// problems.js   what went wrong, and who can act
// notices.js    problems and the log on the page
// sound.js      ring, tone, microphone
import { h, setText } from "./shared/dom.js";
import { LoginForm } from "./login.js";
import { Problems, say } from "./notices.js";
import { ofSignaling } from "./problems.js";
import { getSettings, logOut } from "./rest.js";
import { Session } from "./session.js";
import { Sound } from "./sound.js";

const WORDS = { connecting: "connecting", live: "live", lost: "no connection – trying again", out: "logged out" };
const at = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const sound = new Sound();
const problems = new Problems(at("problems"));
let session = null;

// The token lives as long as the tab: two tabs are two users.
const stored = {
  get: () => JSON.parse(sessionStorage.getItem("login") ?? "null"),
  set: (login) => sessionStorage.setItem("login", JSON.stringify(login)),
  // With what they chose: the next user of this tab begins anew.
  clear: () => sessionStorage.clear(),
};

function showState(state) {
  at("live").dataset.state = state;
  setText(at("live").lastElementChild, WORDS[state] ?? state);
}

function onIncoming(lines, own) {
  const banner = (line) => {
    const caller = own.state.others(line).find((one) => one.role === "caller");
    const answer = () => own.act("answer", line.line);
    const decline = () => own.act("release", line.line);
    return h(
      "div",
      { class: "ring", data: { line: line.line } },
      h("p", {}, h("b", {}, caller ? own.state.nameOf(caller.user_id) : "Someone"), ` rings on ${line.label}`),
      h("button", { type: "button", class: "good", on: { click: answer } }, "Answer"),
      h("button", { type: "button", on: { click: decline } }, "Decline"),
    );
  };
  const shown = [...at("incoming").children].map((element) => element.dataset.line);
  if (shown.join() !== lines.map((line) => line.line).join()) at("incoming").replaceChildren(...lines.map(banner));
  document.title = lines.length ? `☎ ${lines[0].label}` : `${own.user.name ?? own.user.user_id} – Softphone`;
}

function begin(login) {
  stored.set({ token: login.token, user: login.user });
  problems.clearAll();
  session = new Session(login, {
    problems,
    sound,
    wantsTone: query.has("tone"),
    onState: showState,
    onIncoming,
    onEnd,
  });
  setText(at("who"), [login.user.name ?? login.user.user_id, login.user.firm_name].filter(Boolean).join(", "));
  at("logout").hidden = at("presence-label").hidden = false;
  at("page").replaceChildren(session.element);
  session.start();
}

function onEnd(state, detail) {
  end();
  problems.show(ofSignaling(state, detail));
}

function end() {
  session?.close();
  problems.clearAll();
  session = null;
  stored.clear();
  showState("out");
  setText(at("who"), "");
  document.title = "Softphone";
  at("incoming").replaceChildren();
  say("");
  at("logout").hidden = at("presence-label").hidden = true;
  at("page").replaceChildren(new LoginForm(query.get("user") ?? "", begin, problems).element);
}

async function onLogOut() {
  const { token } = session;
  end();
  // The token is forgotten here in any case; without an answer it ends by itself.
  await logOut(token).catch(() => {});
}

async function restore() {
  const login = stored.get();
  if (!login) return end();
  try {
    begin({ ...login, settings: await getSettings(login.token) });
  } catch {
    end();
  }
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
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  // What is typed into a field is text.
  if (event.target.matches?.("input:not([type=radio], [type=checkbox]), select")) return;
  if (event.key === "t") toggleTheme();
  else if (event.key === "a") session?.answer();
  else if (event.key === "h") session?.hangUp();
  else if (/^[1-9]$/.test(event.key)) session?.board.pressAt(Number(event.key));
}

function wake() {
  sound.wake();
  problems.clear("sound");
  session?.wake();
}

addEventListener("keydown", onKey);
addEventListener("pointerdown", wake);
addEventListener("keydown", wake);
at("theme").addEventListener("click", toggleTheme);
at("logout").addEventListener("click", onLogOut);
at("presence").addEventListener("change", ({ target }) => session?.tell("presence.set", { state: target.value }));
restore();
