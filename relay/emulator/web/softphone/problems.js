// What went wrong, in words: the cause, and who can do what about it. {key, title, text}; one key is shown once.

const AGAIN = "Log out and in again after the change: the setting counts from the next login.";
const PORTAL = "A firm administrator can switch on Voice via Web Proxy for you in the portal, under Users.";

const problem = (key, title, ...sentences) => ({ key, title, text: sentences.filter(Boolean).join(" ") });

// TURN servers: event is RTCPeerConnectionIceErrorEvent. Its errorCode is TURN's own, or 701 if there was no answer.
export function ofIceError({ errorCode, errorText, url }, { transport, settings }) {
  const said = `The server said: ${errorCode} ${errorText || "without a reason"} (${url}).`;
  const off = !settings.voiceViaWebProxy;
  if (errorCode === 403) return ofForbidden(said, off);
  if (errorCode === 401) {
    const act =
      "The page asks for new ones. If this stays, log out and in. Then the operators of the TURN servers must act.";
    return problem("turn-401", "The TURN server does not accept the credentials", said, act);
  }
  if (errorCode === 486) {
    const act = "End a call in another tab or on another device. The operator of the relay sets how many are allowed.";
    return problem("turn-486", "You have as many calls as you may have at once", said, act);
  }
  if (errorCode === 508) {
    return problem("turn-508", "The TURN server is full", said, "Try later. Its operator can add capacity.");
  }
  if (errorCode === 701) return transport.kind === "relay" ? ofNoRelay(transport, url) : ofNoUdp(settings, url);
  return problem(`turn-${errorCode}`, "The TURN server refused the call", said, "Its operator can say why.");
}

// Browsers do not pass on the reason that came with the number. ``explained`` says more, if the emulator can be asked.
function ofForbidden(said, off) {
  const title = "The relay refused the call: you are not entitled to voice through it";
  if (off) return problem("turn-403", title, "Voice via Web Proxy is off for you.", PORTAL, AGAIN, said);
  const now = "Voice via Web Proxy was on for you when you logged in.";
  const act = "A firm administrator can see in the portal whether it still is.";
  return problem("turn-403", title, now, act, "Or the operator of the relay does not let you use this region.", said);
}

// explanation: {allowed, now, at_login, reason, administrators}
export function explained(refused, { allowed, reason, administrators }) {
  if (allowed) {
    const cause = "The emulator would allow it, so the relay asked someone else, or could not ask.";
    return { ...refused, text: `${reason} ${cause} Its operator can look at its entitlement policy.` };
  }
  const people = administrators.map((one) => `${one.name} (${one.email})`).join(", ");
  return { ...refused, text: [reason, people && `Administrators of your firm: ${people}.`].filter(Boolean).join(" ") };
}

function ofNoRelay(transport, url) {
  return problem(
    "turns-701",
    `No TURN over TLS with ${transport.hosts.join(", ") || url}`,
    "Either nothing answers there, or this browser does not trust its certificate.",
    "Open the same address with https:// in a tab. If the browser warns you, import the CA file of the emulator's folder",
    "as an authority for websites, and restart the browser. If there is no answer, the relay is down or a proxy does not",
    "let you reach it: ask its operator. To hear a call meanwhile, choose directly by UDP.",
  );
}

function ofNoUdp(settings, url) {
  const cause = "UDP is blocked on this network, by a firewall or by the browser's own policy, or the server is down.";
  return problem("udp-701", "No answer from the TURN servers by UDP", `Nothing came back from ${url}.`, cause, hopeWithoutUdp(settings));
}

const hopeWithoutUdp = ({ voiceViaWebProxy }) =>
  voiceViaWebProxy ? "Voice via Web Proxy is on for you: choose the relay as your transport." : `${PORTAL} ${AGAIN}`;

// They were asked some seconds ago. The browser asks on, and tells after some 40 s that it gave up.
export function ofNoAnswerYet({ transport, settings }) {
  const title = `No answer yet from ${transport.hosts.join(", ") || "any server"} by ${transport.protocol}`;
  if (transport.kind === "relay") {
    return problem(
      "turn-slow",
      title,
      "The browser keeps trying. The relay may be down, or a proxy does not let you reach it: ask its operator.",
    );
  }
  return problem(
    "turn-slow",
    title,
    "The browser keeps trying. If a firewall blocks UDP, there will be no answer.",
    hopeWithoutUdp(settings),
  );
}

// All servers were asked, and none gave a relayed address, without a reason.
export function ofNoCandidate({ transport, settings }) {
  if (!transport.iceServers.length) {
    const which = transport.kind === "relay" ? "no relay (no turns: URL)" : "no UDP server (no turn: URL)";
    const act = "Whoever runs the emulator can start it with a relay, or choose the other transport here.";
    return problem("no-servers", `The settings name ${which}`, act);
  }
  const url = transport.hosts.join(", ");
  return transport.kind === "relay" ? ofNoRelay(transport, url) : ofNoUdp(settings, url);
}

export function ofNoFarCandidate(name) {
  return problem("no-far-candidate", `No voice with ${name}`, "They have no relayed address. Their own page says why.");
}

export function ofLostPath(name) {
  const cause = "It worked, and then nothing came back: their page is gone, or a network on the way has changed.";
  return problem("ice-failed", `The voice path to ${name} is lost`, cause, "The page tries again.");
}

export function ofFailedPath(name) {
  const cause = "Each side has a relayed address, but no check got through between the two TURN servers.";
  return problem(
    "ice-failed",
    `No path for voice to ${name}`,
    cause,
    "The page tries again. The operator of the TURN servers can look.",
  );
}

export function ofNativePeer(name) {
  const cause =
    "Their description of media has no DTLS fingerprint: they use a native softphone, with keys in the description.";
  return problem("native-peer", `No voice with ${name}`, cause, "A browser can talk to browsers only.");
}

export function ofNoAnswerOfMedia(name) {
  const cause = "The offer of media was not answered.";
  return problem(
    "no-answer",
    `No voice with ${name} yet`,
    cause,
    "A native softphone cannot answer a browser. Else their page is hung or gone.",
  );
}

export function ofTooManyListeners(listeners, most) {
  const cause = `${listeners} listen, and this page reaches ${most} of them: a browser encrypts for each listener separately.`;
  return problem(
    "too-many",
    "Not everyone hears you",
    cause,
    "Native softphones send once, and the cloud's SFU sends it on.",
  );
}

// The microphone: getUserMedia's DOMException.
export function ofMicrophone(error) {
  const instead = "A built-in tone is sent instead.";
  if (!isSecureContext) {
    const act = "Open it by https, or as localhost.";
    return problem("microphone", "This page may not use the microphone", "It was not loaded safely.", act, instead);
  }
  if (error.name === "NotAllowedError") {
    const act = "Allow it beside the address, then choose Microphone again.";
    return problem(
      "microphone",
      "The microphone was refused",
      "You, or a policy of this browser, refused it.",
      act,
      instead,
    );
  }
  if (error.name === "NotFoundError") {
    return problem("microphone", "There is no microphone", "Connect one, then choose Microphone again.", instead);
  }
  const cause = `The browser says: ${error.message || error.name}.`;
  return problem("microphone", "The microphone cannot be used", cause, "Another program may hold it.", instead);
}

export function ofSound() {
  return problem("sound", "The browser holds the sound back", "Click anywhere on this page to hear it.");
}

// Why a login ended, by the reason of session.ended.
const ENDS = {
  disabled: ["An administrator has disabled this user", "Ask an administrator of your firm to enable it."],
  expired: ["The time of this login is up", "Log in again."],
  ended: ["This login was ended, by a logout or by a new password", "Log in again."],
};

// Signaling: state is what signaling.js tells.
export function ofSignaling(state, detail) {
  if (state === "replaced") {
    const act = "Log in here to go on in this tab. A user has one session at a time.";
    return problem("session", "You have logged in elsewhere, so this session has ended", act);
  }
  if (state === "ended") return problem("session", ...(ENDS[detail.reason] ?? ENDS.ended));
  if (state === "refused")
    return problem("session", "Signaling refused this login", detail?.message, detail?.expected, "Log in again.");
  const act = "The page connects again by itself. Voice goes on meanwhile, but buttons do not work.";
  return problem("signaling", "The connection to signaling is lost", detail ? `Reason: ${detail}.` : "", act);
}

export function ofRefusal(what, { code, message, expected }) {
  return problem(`refused-${code}`, what, message, expected && `Expected: ${expected}.`);
}

export function ofLogin({ status, detail, retryAfterS }) {
  if (status === 0) {
    return problem(
      "login",
      `The login server did not answer: ${detail.message}`,
      "The emulator may be down, or a proxy is in the way.",
    );
  }
  if (status === 429) {
    const when = retryAfterS ? `Try again in ${retryAfterS} s.` : "Try again later.";
    return problem("login", "Too many attempts", when);
  }
  return problem("login", detail.message, detail.expected && `Expected: ${detail.expected}.`);
}
