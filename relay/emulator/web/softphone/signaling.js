// The connection to the signaling server: socket.io, with a deadline for each answer.
import { io } from "./socket.io/socket.io.esm.min.js";

const ANSWER_TIMEOUT_MS = 10_000;
// A server that closes each connection at once must not be asked at once.
const CONNECT_AGAIN_MS = 1000;
const EVENTS = [
  "welcome",
  "line.state",
  "presence.state",
  "floor.state",
  "media.description",
  "media.candidate",
  "fault",
];

export class Refused extends Error {
  // detail: {code, message, expected}
  constructor(detail) {
    super(detail.message);
    this.detail = detail;
  }
}

export class Signaling {
  // onEvent(name, message); onState(state, detail) with "connecting", "live", "lost", "refused", "replaced" or "ended".
  constructor(token, onEvent, onState) {
    this.onState = onState;
    this.ended = false;
    this.socket = io({ path: "/socket.io/", auth: { token }, reconnectionDelayMax: 5000, timeout: ANSWER_TIMEOUT_MS });
    for (const name of EVENTS) this.socket.on(name, (message) => onEvent(name, message));
    this.socket.on("welcome", () => onState("live"));
    this.socket.on("session.replaced", () => this.end("replaced"));
    this.socket.on("session.ended", (message) => this.end("ended", message));
    this.socket.on("disconnect", (reason) => this.onLost(reason));
    this.socket.on("connect_error", (error) => this.onError(error));
    onState("connecting");
  }

  onLost(reason) {
    if (this.ended) return;
    this.onState("lost", reason);
    // socket.io tries again by itself, unless the server closed the connection.
    if (!this.socket.active) setTimeout(() => this.ended || this.socket.connect(), CONNECT_AGAIN_MS);
  }

  onError(error) {
    if (this.ended) return;
    if (this.socket.active) this.onState("lost", error.message);
    else this.end("refused", error.data ?? { code: "refused", message: error.message });
  }

  // Send a message and wait for its acknowledgement. Throws Refused.
  async send(event, message = {}) {
    if (!this.socket.connected) throw new Refused({ code: "no_connection", message: "There is no signaling now." });
    let answer;
    try {
      answer = await this.socket.timeout(ANSWER_TIMEOUT_MS).emitWithAck(event, message);
    } catch {
      throw new Refused({ code: "no_answer", message: `${event}: no answer in ${ANSWER_TIMEOUT_MS / 1000} s.` });
    }
    if (!answer.ok) throw new Refused(answer.error);
    return answer;
  }

  end(state, detail) {
    this.ended = true;
    this.socket.disconnect();
    this.onState(state, detail);
  }

  close() {
    this.ended = true;
    this.socket.disconnect();
  }
}
