// One WebRTC connection to one other browser: negotiation, ICE through TURN only, and what is heard.
import {
  ofFailedPath,
  ofIceError,
  ofLostPath,
  ofNativePeer,
  ofNoAnswerOfMedia,
  ofNoAnswerYet,
  ofNoCandidate,
  ofNoFarCandidate,
} from "./problems.js";

// An answer needs no user, so it comes within a second; slow machines and proxies need more.
const ANSWER_TIMEOUT_MS = 15_000;
// A TURN server answers within milliseconds, but a browser gives up only after some 40 s. So long nobody should wonder.
const SLOW_MS = 5000;
// A path that failed three times has a cause that a fourth try does not remove.
const MAX_RESTARTS = 2;

// The vendor's clients send G.711: with it, the relay's figures and ours speak of the same. No comfort noise, so that
// there is a packet every 20 ms.
function codecsInOrder() {
  const { codecs } = RTCRtpReceiver.getCapabilities("audio");
  const rank = ({ mimeType }) => ["audio/pcmu", "audio/pcma", "audio/opus"].indexOf(mimeType.toLowerCase());
  return codecs.filter((codec) => rank(codec) >= 0).sort((one, other) => rank(one) - rank(other));
}

const sessionOf = (sdp) => /^o=\S+ (\d+)/m.exec(sdp)?.[1];

export class Peer {
  // link: {me, name, sendDescription(type, sdp), sendCandidate(text), transport, settings, onProblem, onSolved, onChange}
  constructor(userId, link, track, talking) {
    this.userId = userId;
    this.link = link;
    this.closed = false;
    this.restarts = 0;
    this.ignoring = false;
    this.refusal = null;
    this.relayed = false;
    this.slow = false;
    this.reachable = false;
    this.unreachable = false;
    this.chain = Promise.resolve();
    // Both may offer at once. Then the offer of the first by name counts.
    this.polite = link.me > userId;
    this.pc = new RTCPeerConnection({
      iceServers: link.transport.iceServers,
      iceTransportPolicy: "relay",
      bundlePolicy: "max-bundle",
    });
    this.audio = new Audio();
    this.audio.autoplay = true;
    this.sender = this.pc.addTrack(track, new MediaStream([track]));
    this.pc.getTransceivers()[0].setCodecPreferences(codecsInOrder());
    this.talk(track, talking);
    this.listen();
  }

  listen() {
    const { pc, link } = this;
    pc.addEventListener("track", ({ track }) => this.play(new MediaStream([track])));
    // The last one is null. An empty one before it says the same, in the form of an older draft.
    pc.addEventListener(
      "icecandidate",
      ({ candidate }) => candidate?.candidate !== "" && link.sendCandidate(candidate?.candidate ?? ""),
    );
    pc.addEventListener("icecandidate", ({ candidate }) => candidate?.type === "relay" && this.onRelayed());
    pc.addEventListener("icecandidateerror", (event) => this.onIceError(event));
    pc.addEventListener("icegatheringstatechange", () => this.onGathering());
    pc.addEventListener("connectionstatechange", () => this.onConnection());
  }

  // Without a track nothing is sent: on one-way lines only those who talk use the network.
  talk(track, talking) {
    this.sender.replaceTrack(talking ? track : null).catch((error) => this.fail(error));
  }

  play(stream) {
    this.audio.srcObject = stream;
    this.audio.play().catch(() => this.link.onSilent());
  }

  // Steps of one negotiation come one after the other.
  step(work) {
    this.chain = this.chain.then(() => (this.closed ? null : work())).catch((error) => this.fail(error));
    return this.chain;
  }

  fail(error) {
    if (!this.closed) this.link.onFault(`${this.link.name}: ${error.message}`);
  }

  offer() {
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.onUnanswered(), ANSWER_TIMEOUT_MS);
    return this.step(() => this.describe());
  }

  async describe() {
    await this.pc.setLocalDescription();
    const { type, sdp } = this.pc.localDescription;
    await this.link.sendDescription(type, sdp);
  }

  onUnanswered() {
    if (!this.closed && this.pc.signalingState === "have-local-offer" && !this.refusal) {
      this.link.onProblem(ofNoAnswerOfMedia(this.link.name));
    }
  }

  onDescription(type, sdp) {
    return this.step(async () => {
      if (!/^a=fingerprint:/m.test(sdp)) {
        this.link.onProblem(ofNativePeer(this.link.name));
        return;
      }
      const collides = type === "offer" && this.pc.signalingState !== "stable";
      this.ignoring = collides && !this.polite;
      if (this.ignoring) return;
      await this.pc.setRemoteDescription({ type, sdp });
      clearTimeout(this.waiting);
      if (type === "offer") await this.describe();
    });
  }

  onCandidate(candidate) {
    return this.step(async () => {
      if (this.ignoring || !this.pc.remoteDescription) return;
      await this.pc.addIceCandidate({ candidate, sdpMLineIndex: 0 });
      this.reachable ||= candidate !== "";
      if (!this.reachable) this.onUnreachable();
    });
  }

  // Their candidates have ended, and there was none.
  onUnreachable() {
    this.unreachable = true;
    this.link.onProblem(ofNoFarCandidate(this.link.name));
    this.link.onChange();
  }

  get hasFailed() {
    return Boolean(this.refusal) || this.unreachable || this.pc.connectionState === "failed";
  }

  onIceError(event) {
    const { errorCode, errorText, url } = event;
    this.link.onEvent(`ICE: ${errorCode} ${errorText} ${url}`);
    // Some networks of this machine may not reach a server that others do reach. TURN's own refusals always count.
    if (errorCode === 701) this.unreached = event;
    else this.refuse(ofIceError(event, this.link));
  }

  onGathering() {
    if (this.closed) return;
    if (this.pc.iceGatheringState === "gathering") this.expectSoon();
    if (this.pc.iceGatheringState === "complete") this.onGathered();
  }

  expectSoon() {
    this.relayed = this.slow = false;
    clearTimeout(this.patience);
    this.patience = setTimeout(() => this.onSlow(), SLOW_MS);
  }

  onSlow() {
    if (this.closed || this.hasFailed) return;
    this.slow = true;
    if (!this.relayed) this.link.onProblem(ofNoAnswerYet(this.link));
    this.link.onChange();
  }

  onRelayed() {
    this.relayed = true;
    this.link.onSolved("turn-slow");
  }

  // What this connection has been waiting for, if that takes long.
  get waitsFor() {
    if (!this.slow || this.hasFailed || this.pc.connectionState === "connected") return "";
    const { transport, name } = this.link;
    if (!this.relayed) return `no answer yet from ${transport.hosts.join(", ")} by ${transport.protocol}`;
    if (!this.pc.remoteDescription) return `no answer yet from the page of ${name}`;
    if (!this.reachable) return `${name} has no relayed address yet`;
    return this.worked ? "nothing comes through now" : "nothing has come through yet";
  }

  onGathered() {
    if (/ typ relay /.test(this.pc.localDescription?.sdp ?? "")) return;
    if (this.refusal) return;
    this.refuse(this.unreached ? ofIceError(this.unreached, this.link) : ofNoCandidate(this.link));
  }

  refuse(problem) {
    this.refusal = problem;
    this.link.onSolved("turn-slow");
    this.link.onProblem(problem);
    this.link.onChange();
  }

  onConnection() {
    const { connectionState } = this.pc;
    this.link.onChange();
    if (connectionState === "connected") this.onConnected();
    if (connectionState !== "failed" || this.refusal || !this.reachable) return;
    this.link.onProblem((this.worked ? ofLostPath : ofFailedPath)(this.link.name));
    // Only one side restarts, and it is the one whose offer would count.
    if (!this.polite && this.restarts < MAX_RESTARTS) {
      this.restarts += 1;
      this.pc.restartIce();
      this.offer();
    }
  }

  onConnected() {
    this.worked = true;
    this.restarts = 0;
    this.link.onConnected();
  }

  // Whether a description is of another connection than the one so far: their page was loaded again (RFC 8829, 5.2.1).
  isAnother(sdp) {
    const known = this.pc.remoteDescription?.sdp;
    return known !== undefined && sessionOf(known) !== sessionOf(sdp);
  }

  close() {
    this.closed = true;
    clearTimeout(this.waiting);
    clearTimeout(this.patience);
    this.link.onSolved("turn-slow");
    this.pc.close();
    this.audio.srcObject = null;
  }
}
