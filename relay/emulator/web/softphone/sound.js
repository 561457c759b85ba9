// What the page makes itself: the ring, and a tone in place of a microphone. All by WebAudio, no files.

// Two beats, and a pause.
const RING_HZ = [425, 480];
const RING_PATTERN_S = [0, 0.4, 0.6, 1.0];
const RING_EVERY_S = 3;
const RING_GAIN = 0.08;
// The tone of each user has a pitch of its own, so that one hears who it is.
const LOWEST_TONE_HZ = 330;
const TONE_STEPS = 12;
const TONE_GAIN = 0.2;

export class Sound {
  constructor() {
    this.context = null;
    this.ringing = null;
  }

  // Browsers allow sound only after a click or a key in this page. To be called at each.
  wake() {
    this.context ??= new AudioContext();
    // It is running at once, or it stays as it is until the next click.
    if (this.context.state === "suspended") this.context.resume().catch(() => {});
  }

  // Whether the page can be heard, and its tone be sent.
  get isAllowed() {
    return navigator.userActivation.hasBeenActive;
  }

  ring(on) {
    if (on === Boolean(this.ringing)) return;
    if (!on) {
      clearInterval(this.ringing);
      this.ringing = null;
      return;
    }
    this.ringOnce();
    this.ringing = setInterval(() => this.ringOnce(), RING_EVERY_S * 1000);
  }

  ringOnce() {
    if (!this.isAllowed) return;
    this.wake();
    const gain = this.context.createGain();
    gain.connect(this.context.destination);
    const now = this.context.currentTime;
    gain.gain.setValueAtTime(0, now);
    RING_PATTERN_S.forEach((at, number) => {
      gain.gain.setTargetAtTime(number % 2 ? 0 : RING_GAIN, now + at, 0.01);
    });
    for (const frequency of RING_HZ) this.oscillate(frequency, gain).stop(now + RING_PATTERN_S.at(-1) + 0.2);
  }

  oscillate(frequency, target) {
    const oscillator = this.context.createOscillator();
    oscillator.frequency.value = frequency;
    oscillator.connect(target);
    oscillator.start();
    return oscillator;
  }

  // A stream with a tone that swells and fades once a second.
  tone(name) {
    this.context ??= new AudioContext();
    const step = [...name].reduce((sum, letter) => sum + letter.codePointAt(0), 0) % TONE_STEPS;
    const target = this.context.createMediaStreamDestination();
    const gain = this.context.createGain();
    gain.gain.value = TONE_GAIN / 2;
    const swell = this.context.createGain();
    swell.gain.value = TONE_GAIN / 2;
    this.oscillate(1, swell);
    swell.connect(gain.gain);
    gain.connect(target);
    this.oscillate(LOWEST_TONE_HZ * 2 ** (step / TONE_STEPS), gain);
    return target.stream;
  }
}

// The microphone as a stream. Throws DOMException, or TypeError where the page may not ask at all.
export function openMicrophone() {
  return navigator.mediaDevices.getUserMedia({
    audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 },
  });
}
