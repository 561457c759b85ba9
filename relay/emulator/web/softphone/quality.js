// How a call sounds, each second, from getStats: loss, jitter, delay and MOS of what is heard, or of what others hear.
import { causeOf, codecOf, mos, mouthToEarMs, rFactor } from "./emodel.js";

// One minute on the charts.
export const MAX_SAMPLES = 60;
// Of G.107's bands: below the first, many are dissatisfied; below the second, nearly all.
const POOR_MOS = 3.6;
const BAD_MOS = 3.1;
// A judgement is of some seconds, so that it does not flicker. At the beginning, the browser's buffer is still large.
const JUDGED = 3;
const SETTLING = 5;

const share = (part, whole) => (whole > 0 ? (100 * Math.max(0, part)) / whole : null);
const ms = (seconds) => (seconds === undefined ? null : seconds * 1000);

function partsOf(report) {
  const all = [...report.values()];
  const audio = (type) => all.find((one) => one.type === type && one.kind === "audio");
  const transport = all.find((one) => one.type === "transport");
  const pair = report.get(transport?.selectedCandidatePairId);
  return {
    ...{ inbound: audio("inbound-rtp"), outbound: audio("outbound-rtp"), remote: audio("remote-inbound-rtp"), pair },
    ...{ local: report.get(pair?.localCandidateId), far: report.get(pair?.remoteCandidateId), report },
  };
}

const address = (candidate) => (candidate ? `${candidate.address}:${candidate.port}` : "–");

// The path of the voice, as the browser chose it.
export function pathOf(report) {
  const { pair, local, far } = partsOf(report);
  if (!pair) return null;
  const over = local?.relayProtocol
    ? `TURN over ${local.relayProtocol.toUpperCase()}`
    : (local?.candidateType ?? "unknown");
  return {
    ...{ over, url: local?.url ?? "", local: address(local), remote: address(far), remoteType: far?.candidateType },
    ...{ bytesSent: pair.bytesSent, bytesReceived: pair.bytesReceived },
  };
}

// What happened since the report before: {packetsSent, packetsReceived, lossPercent, jitterMs, delayMs, bufferMs, mos,
// cause, of}. ``cause`` is what lowers MOS the most: "missing" or "delay".
// ``of`` says whose ears: "heard here", or "heard there" if this page only talks. A value is null if it is not known.
export function compare(report, before) {
  const now = partsOf(report);
  const then = before ? partsOf(before) : {};
  const delayMs = now.pair?.currentRoundTripTime === undefined ? null : (now.pair.currentRoundTripTime * 1000) / 2;
  const received = grown(now.inbound, then.inbound, "packetsReceived");
  const sent = grown(now.outbound, then.outbound, "packetsSent");
  const totals = { packetsSent: now.outbound?.packetsSent ?? 0, packetsReceived: now.inbound?.packetsReceived ?? 0 };
  if (received > 0) return { ...totals, delayMs, of: "heard here", ...heardHere(now, then, received, delayMs) };
  if (sent > 0 && now.remote) return { ...totals, delayMs, of: "heard there", ...heardThere(now, delayMs) };
  return { ...totals, delayMs, of: null, lossPercent: null, jitterMs: null, bufferMs: null, mos: null, cause: null };
}

const grown = (now, then, name) => (now?.[name] ?? 0) - (then?.[name] ?? 0);

function heardHere(now, then, received, delayMs) {
  const lost = grown(now.inbound, then.inbound, "packetsLost");
  // Packets that came too late to be played are missing as well.
  const late = grown(now.inbound, then.inbound, "packetsDiscarded");
  const lossPercent = share(lost + late, received + Math.max(0, lost));
  const emitted = grown(now.inbound, then.inbound, "jitterBufferEmittedCount");
  const buffered = emitted > 0 ? (1000 * grown(now.inbound, then.inbound, "jitterBufferDelay")) / emitted : 0;
  return { lossPercent, jitterMs: ms(now.inbound.jitter), ...scored(now, now.inbound, lossPercent, delayMs, buffered) };
}

// The others report once in some seconds. Their jitter buffer is not told: twice the jitter is what it would hold.
function heardThere(now, delayMs) {
  const lossPercent = 100 * (now.remote.fractionLost ?? 0);
  const jitterMs = ms(now.remote.jitter);
  return { lossPercent, jitterMs, ...scored(now, now.outbound, lossPercent, delayMs, 2 * (jitterMs ?? 0)) };
}

function scored(now, stream, lossPercent, delayMs, bufferMs) {
  const codec = codecOf(now.report.get(stream.codecId)?.mimeType);
  const known = delayMs !== null && lossPercent !== null;
  const judged = known ? [codec, mouthToEarMs(delayMs, bufferMs), lossPercent] : null;
  const score = judged && mos(rFactor(...judged));
  return { mos: score, cause: judged && causeOf(...judged), bufferMs, codec: codec.name, provisional: codec.provisional };
}

// How a call sounds: {level, why}. The level is "good", "poor" or "bad"; ``why`` is a sentence, or empty.
export function judge(samples) {
  const known = samples.filter((sample) => typeof sample?.mos === "number");
  const last = known.slice(-JUDGED);
  if (!last.length) return { level: "good", why: "" };
  const mean = (name) => last.reduce((total, one) => total + one[name], 0) / last.length;
  const score = mean("mos");
  if (score >= POOR_MOS) return { level: "good", why: "" };
  const why =
    last.at(-1).cause === "missing"
      ? `MOS is low because ${mean("lossPercent").toFixed(0)} % of the packets are missing.`
      : `MOS is low because of delay: ${mean("delayMs").toFixed(0)} ms on the way, and ${mean("bufferMs").toFixed(0)} ms in the buffer of the browser that plays it.`;
  if (known.length < SETTLING) return { level: "good", why: `${why} The call has just begun, so this may pass.` };
  return { level: score < BAD_MOS ? "bad" : "poor", why };
}

// Keeps a call's last minute: each second the worst of its connections.
export class Meter {
  constructor() {
    this.samples = [];
    this.reports = new Map();
    this.path = null;
  }

  async look(peers) {
    const found = [];
    for (const peer of peers) {
      const report = await peer.pc.getStats();
      found.push(compare(report, this.reports.get(peer)));
      this.reports.set(peer, report);
      this.path = pathOf(report) ?? this.path;
    }
    for (const peer of this.reports.keys()) if (!peers.includes(peer)) this.reports.delete(peer);
    const worst = found.reduce((one, other) => ((other.mos ?? 9) < (one.mos ?? 9) ? other : one), found[0]);
    const sum = (name) => found.reduce((total, one) => total + one[name], 0);
    this.latest = worst ? { ...worst, packetsSent: sum("packetsSent"), packetsReceived: sum("packetsReceived") } : null;
    this.samples.push(this.latest);
    if (this.samples.length > MAX_SAMPLES) this.samples.shift();
  }
}
