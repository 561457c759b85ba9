// A user who is logged in: signaling, lines, and the media of each call, brought together.
import { Board } from "./board.js";
import { Call } from "./call.js";
import { CallList } from "./calls.js";
import { h } from "./shared/dom.js";
import { describe } from "./line.js";
import { Log, say } from "./notices.js";
import { explained, ofMicrophone, ofRefusal, ofSignaling, ofSound } from "./problems.js";
import { getTurnCredentials, getVoice, sendLog } from "./rest.js";
import { Setup } from "./setup.js";
import { Signaling } from "./signaling.js";
import { openMicrophone } from "./sound.js";
import { ONE_WAY, State } from "./state.js";
import { withCredentials } from "./transport.js";

const LOOK_EVERY_MS = 1000;
// Credentials that end sooner are replaced. An allocation lives for ten minutes, and its refreshes need them, too.
const FRESH_FOR_MS = 600_000;
// Not more often than this, if there are no better ones.
const ASK_AGAIN_MS = 30_000;
// What is no longer so once voice flows.
const PATH_PROBLEMS = ["ice-failed", "no-answer", "no-far-candidate"];
// Media may come a moment before the state of the line that it is for.
const MAX_EARLY = 50;

export class Session {
  // frame: {problems, sound, wantsTone, onState(state), onIncoming(lines), onEnd(state, detail)}
  constructor({ token, settings, user }, frame) {
    Object.assign(this, { token, settings, user, frame });
    this.state = new State();
    this.calls = new Map();
    this.early = [];
    this.askAgainAt = 0;
    this.muted = false;
    this.held = new Map();
    this.board = new Board(
      (...does) => this.act(...does),
      (line, on) => this.talk(line, on),
    );
    this.callList = new CallList();
    this.setup = new Setup({
      onTransport: () => this.log.add(`transport: ${this.setup.transport.title}`),
      onSource: (name) => {
        sessionStorage.setItem("source", name);
        this.useSource(name);
      },
      onMute: (muted) => this.mute(muted),
    });
    this.log = new Log(() => this.sendLog());
    const side = h("div", { class: "side" }, this.callList.element, this.setup.element, this.log.element);
    this.element = h("div", { class: "phone" }, this.board.element, side);
    this.setup.show(settings);
  }

  async start() {
    await this.useSource(this.frame.wantsTone ? "tone" : (sessionStorage.getItem("source") ?? "microphone"));
    if (this.closed) return;
    this.signaling = new Signaling(
      this.token,
      (name, message) => this.onEvent(name, message),
      (state, detail) => this.onState(state, detail),
    );
    this.timer = setInterval(() => this.look(), LOOK_EVERY_MS);
  }

  // What is sent: the microphone, or the tone if there is none.

  async useSource(name) {
    this.frame.problems.clear("microphone");
    let stream;
    try {
      stream = name === "microphone" ? await openMicrophone() : this.frame.sound.tone(this.user.user_id);
    } catch (error) {
      this.frame.problems.show(ofMicrophone(error));
      stream = this.frame.sound.tone(this.user.user_id);
      name = "tone";
    }
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = stream;
    this.setup.showSource(name);
    if (!this.frame.sound.isAllowed) this.frame.problems.show(ofSound());
    for (const call of this.calls.values()) call.setTrack(this.track);
  }

  get track() {
    return this.stream.getAudioTracks()[0];
  }

  mute(muted) {
    this.muted = muted;
    for (const call of this.calls.values()) call.setVolume(muted);
  }

  // Signaling

  onState(state, detail) {
    this.log.add(`signaling: ${state} ${typeof detail === "string" ? detail : ""}`);
    this.frame.onState(state);
    if (state === "live") this.frame.problems.clear("signaling");
    if (state === "lost") this.frame.problems.show(ofSignaling(state, detail));
    if (["refused", "replaced", "ended"].includes(state)) this.frame.onEnd(state, detail);
  }

  onEvent(name, message) {
    if (name === "welcome") this.onWelcome(message);
    else if (name === "line.state") this.onLine(message);
    else if (name === "presence.state") this.onPresence(message);
    else if (name === "media.description" || name === "media.candidate") this.onMedia(name, message);
    else if (name === "fault") this.frame.problems.show(ofRefusal("The emulator reports a fault", message));
  }

  onWelcome(message) {
    this.state.onWelcome(message, this.settings.lines);
    this.board.rebuild(this.state, this.settings.buttons);
    this.showPresence();
    for (const line of this.state.lines.values()) this.syncCall(line, true);
    this.closeGone();
    this.letGo();
    this.refresh();
  }

  // What was let go while there was no signaling, or before the page was loaded again, the others do not know yet.
  letGo() {
    for (const line of this.state.lines.values()) {
      const stale = ONE_WAY.has(line.kind) && this.state.amTalking(line) && !this.held.get(line.line);
      if (stale) this.tell("line.talk", { line: line.line, on: false });
    }
  }

  onPresence(message) {
    this.state.onPresence(message);
    this.showPresence();
    this.board.update(this.state);
  }

  showPresence() {
    const own = this.state.presence.get(this.state.me);
    if (own && own !== "offline") document.getElementById("presence").value = own;
  }

  onLine(line) {
    if (!this.state.onLine(line)) return;
    if (this.board.lacks(this.state)) this.board.rebuild(this.state, this.settings.buttons);
    this.log.add(`${line.line} ${line.label}: ${describe(line, this.state)}`);
    say(`${line.label}: ${describe(line, this.state)}`);
    this.syncCall(line);
    this.closeGone();
    this.refresh();
  }

  refresh() {
    this.board.update(this.state);
    this.callList.update(this.calls, this.state);
    const ringing = [...this.state.lines.values()].filter((line) => this.state.ringsHere(line));
    this.frame.sound.ring(ringing.length > 0);
    this.frame.onIncoming(ringing, this);
  }

  // Calls

  syncCall(line, rejoins = false) {
    if (!this.state.hasMedia(line)) return;
    const call = this.calls.get(line.call_id);
    if (call) call.update(line);
    else this.openCall(line, rejoins);
  }

  openCall(line, rejoins) {
    const call = new Call(
      line,
      {
        ...{ state: this.state, signaling: this.signaling, transport: this.setup.transport, settings: this.settings },
        track: this.track,
        isHeld: (number) => Boolean(this.held.get(number)),
        onProblem: (problem) => this.tellProblem(problem),
        onSolved: (key) => this.frame.problems.clear(key),
        onEvent: (text) => this.log.add(text),
        onFault: (text) => this.log.add(`fault: ${text}`),
        onSilent: () => this.frame.problems.show(ofSound()),
        onChange: () => this.callList.update(this.calls, this.state),
        onConnected: () => PATH_PROBLEMS.forEach((key) => this.frame.problems.clear(key)),
      },
      rejoins,
    );
    call.setVolume(this.muted);
    this.calls.set(line.call_id, call);
    const early = this.early.filter(({ message }) => message.call_id === line.call_id);
    this.early = this.early.filter(({ message }) => message.call_id !== line.call_id);
    for (const { name, message } of early) this.onMedia(name, message);
    this.keepFresh();
  }

  async tellProblem(problem) {
    this.log.add(`${problem.title}: ${problem.text}`);
    this.frame.problems.show(problem);
    if (problem.key !== "turn-403") return;
    try {
      const more = explained(problem, await getVoice(this.token));
      this.log.add(more.text);
      this.frame.problems.show(more);
    } catch (error) {
      this.log.add(`the emulator does not explain the refusal: ${error.message}`);
    }
  }

  // Calls that are over, or that the user has left.
  closeGone() {
    const now = new Set(
      [...this.state.lines.values()].filter((line) => this.state.hasMedia(line)).map((line) => line.call_id),
    );
    for (const [callId, call] of this.calls) {
      if (now.has(callId)) continue;
      call.close();
      this.calls.delete(callId);
    }
  }

  onMedia(name, message) {
    const call = this.calls.get(message.call_id);
    if (call && name === "media.description") call.onDescription(message);
    else if (call) call.onCandidate(message);
    else this.early = [...this.early, { name, message }].slice(-MAX_EARLY);
  }

  async keepFresh() {
    const now = Date.now();
    if (this.settings.media.credentials.expires_at * 1000 - now > FRESH_FOR_MS || now < this.askAgainAt) return;
    this.askAgainAt = now + ASK_AGAIN_MS;
    try {
      this.settings.media = withCredentials(this.settings.media, await getTurnCredentials(this.token));
      this.setup.show(this.settings);
    } catch (error) {
      this.log.add(`fresh TURN credentials: ${error.message}`);
    }
  }

  async look() {
    for (const call of this.calls.values()) await call.meter.look([...call.peers.values()]);
    this.callList.update(this.calls, this.state);
    await this.keepFresh();
  }

  // What the user does

  async act(action, line, more = {}) {
    if (action === "join") this.state.joined.add(line);
    await this.tell(`line.${action}`, { line, ...more });
    if (action === "leave" || action === "release") this.state.joined.delete(line);
  }

  // Held on an idle line, it opens the line first. The line may be open only after the button was let go.
  async talk(number, on) {
    if (this.held.get(number) === on || (!on && !this.held.get(number))) return;
    this.held.set(number, on);
    for (const call of this.calls.values()) call.applyTalk();
    const line = this.state.lines.get(number);
    if (on && !this.state.amIn(line)) {
      await this.tell("line.ring", { line: number });
      if (!this.held.get(number) && this.state.amTalking(this.state.lines.get(number)))
        this.tell("line.talk", { line: number, on: false });
    } else if (this.state.amIn(line)) {
      await this.tell("line.talk", { line: number, on });
    }
  }

  async tell(event, message) {
    try {
      const answer = await this.signaling.send(event, message);
      if (answer.line_state) this.onLine(answer.line_state);
    } catch (refused) {
      const label = this.state.lines.get(message.line)?.label ?? "";
      this.log.add(`${event} ${label}: ${refused.message}`);
      const detail = refused.detail ?? { code: "failed", message: refused.message };
      this.frame.problems.show(ofRefusal(`${label || "The emulator"}: not possible`, detail));
    }
  }

  answer() {
    const ringing = [...this.state.lines.values()].find((line) => this.state.ringsHere(line));
    if (ringing) this.act("answer", ringing.line);
  }

  hangUp() {
    for (const line of this.state.lines.values()) {
      if (this.state.amIn(line)) this.act(line.kind === "hoot" ? "leave" : "release", line.line);
    }
  }

  async sendLog() {
    try {
      await sendLog(this.token, this.log.toString());
      this.log.add("the emulator has this log");
    } catch (error) {
      this.log.add(`the log was not taken: ${error.message}`);
    }
  }

  wake() {
    for (const call of this.calls.values()) call.play();
  }

  close() {
    this.closed = true;
    clearInterval(this.timer);
    this.frame.sound.ring(false);
    this.signaling?.close();
    for (const call of this.calls.values()) call.close();
    this.calls.clear();
    this.stream?.getTracks().forEach((track) => track.stop());
    this.element.remove();
  }
}
