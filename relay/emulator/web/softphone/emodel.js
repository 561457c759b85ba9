// The E-model of ITU-T G.107: delay and missing packets to an R factor and a MOS. The same as relay/quality/emodel.py,
// which explains each number; a test compares the two.

const R_WITH_DEFAULTS = 93.2;
const DELAY_WITHOUT_IMPAIRMENT_MS = 100;
const PACKETISATION_MS = 20;

// ie: impairment without loss. bpl: robustness to loss. Browsers conceal what is missing, for each codec.
// G.113 has no narrowband values for Opus: ours are provisional.
export const CODECS = {
  g711: { name: "G.711 with concealment", ie: 0, bpl: 25.1, provisional: false },
  opus: { name: "Opus", ie: 0, bpl: 10, provisional: true },
};

// "audio/PCMU" and "audio/PCMA" are G.711 (RFC 3551). Others are judged as Opus, cautiously.
export const codecOf = (mimeType) => (/\/pcm[ua]$/i.test(mimeType ?? "") ? CODECS.g711 : CODECS.opus);

export const mouthToEarMs = (networkMs, jitterBufferMs) => networkMs + jitterBufferMs + PACKETISATION_MS;

function delayImpairment(mouthToEar) {
  if (mouthToEar <= DELAY_WITHOUT_IMPAIRMENT_MS) return 0;
  const x = Math.log2(mouthToEar / DELAY_WITHOUT_IMPAIRMENT_MS);
  return 25 * ((1 + x ** 6) ** (1 / 6) - 3 * (1 + (x / 3) ** 6) ** (1 / 6) + 2);
}

const equipmentImpairment = (codec, missingPercent) =>
  codec.ie + ((95 - codec.ie) * missingPercent) / (missingPercent + codec.bpl);

export function rFactor(codec, mouthToEar, missingPercent) {
  return R_WITH_DEFAULTS - delayImpairment(mouthToEar) - equipmentImpairment(codec, missingPercent);
}

// What costs the most: "missing" packets or "delay".
export const causeOf = (codec, mouthToEar, missingPercent) =>
  equipmentImpairment(codec, missingPercent) > delayImpairment(mouthToEar) ? "missing" : "delay";

export function mos(r) {
  if (r <= 0) return 1;
  if (r >= 100) return 4.5;
  return Math.max(1, 1 + 0.035 * r + 7e-6 * r * (r - 60) * (100 - r));
}
