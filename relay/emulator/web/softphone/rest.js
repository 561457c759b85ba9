// The login host's REST: login, settings, fresh TURN credentials, and the log of this page.

// An answer comes within milliseconds; a stalled path must not leave the page waiting for ever.
const TIMEOUT_MS = 15_000;

export class RestError extends Error {
  // status 0: there was no answer at all. detail is the body's "error": {code, message, where, expected}.
  constructor(status, detail, retryAfterS) {
    super(detail.message);
    Object.assign(this, { status, detail, retryAfterS });
  }
}

async function ask(method, path, { token, body } = {}) {
  const headers = {};
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = typeof body === "string" ? "text/plain" : "application/json";
  let response;
  try {
    response = await fetch(`../rest/v1/${path}`, {
      method,
      headers,
      body: body === undefined || typeof body === "string" ? body : JSON.stringify(body),
      signal: AbortSignal.timeout(TIMEOUT_MS),
      cache: "no-store",
    });
  } catch (error) {
    const message = error.name === "TimeoutError" ? `no answer in ${TIMEOUT_MS / 1000} s` : "no connection";
    throw new RestError(0, { code: "no_answer", message });
  }
  const answer = await response.json().catch(() => null);
  if (response.ok) return answer;
  const detail = answer?.error ?? { code: "unreadable", message: `status ${response.status} without a reason` };
  throw new RestError(response.status, detail, Number(response.headers.get("Retry-After")) || null);
}

export const logIn = (user, password) =>
  ask("POST", "login", { body: { user, password, client_version: "softphone page" } });
export const getSettings = (token) => ask("GET", "settings", { token });
export const getTurnCredentials = (token) => ask("POST", "turn-credentials", { token });
// Whether the relay would be told to admit this user, why, and who can change it.
export const getVoice = (token) => ask("GET", "voice", { token });
export const logOut = (token) => ask("POST", "logout", { token });
export const sendLog = (token, text) => ask("POST", "logs", { token, body: text });
