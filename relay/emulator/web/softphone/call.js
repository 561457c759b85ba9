// The media of one call: a connection to each other browser in it that needs one.
import { Peer } from "./peer.js";
import { ONE_WAY, offererOf } from "./state.js";
import { ofTooManyListeners } from "./problems.js";
import { Meter } from "./quality.js";

// A browser encrypts and sends for each listener. 8 streams are 0.7 Mbit/s and little work for a laptop.
export const MAX_REACHED = 8;
// Others may offer as well: on a hoot at most 12 talk.
const MAX_PEERS = MAX_REACHED + 12;

export class Call {
  // context: {state, signaling, transport, settings, track, isHeld(line), onProblem, onEvent, onFault, onSilent, onChange, onSolved(key), onConnected}
  // With ``rejoins`` the page was loaded again in the middle of a call: only this side knows that, so it offers to all.
  constructor(line, context, rejoins) {
    this.callId = line.call_id;
    this.context = context;
    this.track = context.track.clone();
    this.peers = new Map();
    this.meter = new Meter();
    this.update(line, rejoins);
  }

  // The line's new state: connect to those who came, and close what those who went have left.
  update(line, rejoins = false) {
    this.line = line;
    const { state } = this.context;
    const me = state.part(line) ?? { user_id: state.me, role: "listener", talking: false };
    const others = state.others(line);
    const there = new Set(others.map((one) => one.user_id));
    for (const [userId, peer] of this.peers) if (!there.has(userId) && this.isComplete(line)) this.drop(userId, peer);
    this.applyTalk();
    const wanted = others.filter((one) => {
      const offerer = offererOf(me, one);
      return rejoins ? offerer : offerer === me.user_id;
    });
    const reached = wanted.slice(0, MAX_REACHED);
    for (const one of reached) if (!this.peers.has(one.user_id)) this.open(one.user_id)?.offer();
    this.say(line, me);
  }

  // On one-way lines the button decides as well: who lets go of it is not heard from then on, even if signaling is lost.
  get talks() {
    const held = !ONE_WAY.has(this.line.kind) || this.context.isHeld(this.line.line);
    return held && this.context.state.amTalking(this.line);
  }

  applyTalk() {
    // At once; the senders follow.
    this.track.enabled = this.talks;
    for (const peer of this.peers.values()) peer.talk(this.track, this.talks);
  }

  isComplete(line) {
    return line.subscribers <= line.participants.length;
  }

  say(line, me) {
    const listeners = line.subscribers - 1;
    if (me.talking && listeners > MAX_REACHED) this.context.onProblem(ofTooManyListeners(listeners, MAX_REACHED));
  }

  open(userId) {
    if (this.peers.size >= MAX_PEERS) return null;
    const peer = new Peer(userId, this.linkTo(userId), this.track, this.talks);
    this.peers.set(userId, peer);
    this.setVolume(this.muted);
    return peer;
  }

  linkTo(userId) {
    const { state, signaling, transport, settings, onProblem, onSolved } = this.context;
    const { onEvent, onFault, onSilent, onChange, onConnected } = this.context;
    const send = (event, message) =>
      signaling.send(event, { call_id: this.callId, to: userId, ...message }).catch((refused) => {
        if (!this.closed) onFault(`${event} to ${state.nameOf(userId)}: ${refused.message}`);
      });
    return {
      ...{ me: state.me, name: state.nameOf(userId), transport, settings },
      ...{ onProblem, onSolved, onEvent, onFault, onSilent, onChange, onConnected },
      sendDescription: (type, sdp) => send("media.description", { type, sdp }),
      sendCandidate: (candidate) => send("media.candidate", { candidate }),
    };
  }

  onDescription({ from, type, sdp }) {
    const known = this.peers.get(from);
    if (type === "offer" && known?.isAnother(sdp)) this.drop(from, known);
    const peer = this.peers.get(from) ?? (type === "offer" ? this.open(from) : null);
    peer?.onDescription(type, sdp);
  }

  onCandidate({ from, candidate }) {
    this.peers.get(from)?.onCandidate(candidate);
  }

  setTrack(track) {
    this.track.stop();
    this.track = track.clone();
    this.applyTalk();
  }

  setVolume(muted) {
    this.muted = muted;
    for (const peer of this.peers.values()) peer.audio.muted = Boolean(muted);
  }

  play() {
    for (const peer of this.peers.values()) if (peer.audio.srcObject) peer.audio.play().catch(() => {});
  }

  drop(userId, peer) {
    peer.close();
    this.peers.delete(userId);
  }

  close() {
    this.closed = true;
    for (const [userId, peer] of this.peers) this.drop(userId, peer);
    this.track.stop();
  }
}
