// What the user may see, as signaling tells it: lines, presence and colleagues. Nothing here touches the page.

// On these lines one talks and the others listen. They are used by holding a button.
export const ONE_WAY = new Set(["shoutdown", "hoot", "broadcast"]);
export const KIND_NAMES = {
  ringdown: "Ringdown",
  shoutdown: "Shoutdown",
  hoot: "Hoot",
  intercom: "Intercom",
  dial_tone: "Dial tone",
  broadcast: "Broadcast",
};

export class State {
  constructor() {
    this.me = null;
    this.lines = new Map();
    this.presence = new Map();
    this.users = new Map();
    this.joined = new Set();
    this.own = new Set();
    this.mayTalk = new Set();
  }

  // lines are those of the settings: {line, may_talk}
  onWelcome(message, lines) {
    this.own = new Set(message.lines.map((line) => line.line));
    this.mayTalk = new Set(lines.filter((line) => line.may_talk).map((line) => line.line));
    this.me = message.user_id;
    this.lines = new Map(message.lines.map((line) => [line.line, line]));
    this.presence = new Map(Object.entries(message.presence));
    this.users = new Map(message.users.map((user) => [user.user_id, user]));
    this.joined = new Set(message.joined);
  }

  // False for a state that is older than the known one.
  onLine(line) {
    const known = this.lines.get(line.line);
    if (known && known.seq >= line.seq) return false;
    this.lines.set(line.line, line);
    // Someone else's dial tone has rung here, and is over.
    if (line.state === "idle" && !this.own.has(line.line)) this.lines.delete(line.line);
    if (line.state === "idle") this.joined.delete(line.line);
    return true;
  }

  onPresence({ user_id, state }) {
    this.presence.set(user_id, state);
  }

  nameOf(userId) {
    return userId === this.me ? "you" : (this.users.get(userId)?.name ?? userId);
  }

  part(line) {
    return line.participants.find((one) => one.user_id === this.me);
  }

  // In a call with more than 50, the server lists only those who talk.
  amIn(line) {
    if (line.state === "idle") return false;
    return Boolean(this.part(line)) || (line.subscribers > line.participants.length && this.joined.has(line.line));
  }

  amTalking(line) {
    return Boolean(this.part(line)?.talking);
  }

  // It rings here, and can be answered.
  ringsHere(line) {
    return line.state === "ringing" && this.part(line)?.role === "callee";
  }

  // There is a call that carries voice, and the user is in it.
  hasMedia(line) {
    return (line.state === "connected" || line.state === "talking") && this.amIn(line);
  }

  others(line) {
    return line.participants.filter((one) => one.user_id !== this.me);
  }
}

// Which of two in a call offers a media connection, or null if neither talks, so that they need none. On both sides
// it is the same: the only one who talks, else the caller, else the first by name.
export function offererOf(one, other) {
  if (!one.talking && !other.talking) return null;
  if (one.talking !== other.talking) return one.talking ? one.user_id : other.user_id;
  if ((one.role === "caller") !== (other.role === "caller")) return one.role === "caller" ? one.user_id : other.user_id;
  return one.user_id < other.user_id ? one.user_id : other.user_id;
}
