// The stream of summaries, and its state on the page: live, quiet, or lost and trying again.

const QUIET_MS = 4000;
const AGAIN_MS = 5000;

export class Live {
  // onSummary(summary); onState(state, text) with "connecting", "live", "quiet" or "lost".
  constructor(onSummary, onState) {
    this.onSummary = onSummary;
    this.onState = onState;
    this.heard = 0;
    this.lost = true;
    this.open();
    setInterval(() => this.watch(), 1000);
  }

  open() {
    this.source = new EventSource("api/events");
    this.source.addEventListener("summary", (event) => {
      this.heard = performance.now();
      this.lost = false;
      this.onState("live", "live");
      this.onSummary(JSON.parse(event.data));
    });
    this.source.addEventListener("error", () => {
      this.lost = true;
      this.onState("lost", "no connection – trying again");
      // The browser tries again by itself, unless the answer was not an event stream.
      if (this.source.readyState === EventSource.CLOSED) setTimeout(() => this.open(), AGAIN_MS);
    });
  }

  watch() {
    const silence = performance.now() - this.heard;
    if (!this.lost && silence > QUIET_MS) this.onState("quiet", `no news for ${Math.round(silence / 1000)} s`);
  }
}
