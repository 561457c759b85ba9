// Which TURN servers a call uses, and why: directly over UDP, or over TLS through the firm's relay.

export const CHOICES = { auto: "as the settings say", udp: "directly by UDP", relay: "through the relay" };

const hostOf = (url) => url.replace(/^turns?:/i, "").replace(/\?.*$/, "");

// {kind: "udp" | "relay", protocol, iceServers, hosts, title, why}. The choice is "auto", "udp" or "relay".
export function chooseTransport(settings, choice) {
  const { transport, alternatives } = settings.media;
  const kind = choice === "auto" ? (transport === "web_proxy" ? "relay" : "udp") : choice;
  const iceServers = alternatives[kind === "relay" ? "web_proxy" : "udp"];
  const hosts = iceServers.flatMap((server) => server.urls.map(hostOf));
  const by = hosts.length ? hosts.join(", ") : "no server";
  const on = settings.voiceViaWebProxy ? "on" : "off";
  const why = choice === "auto" ? `Voice via Web Proxy is ${on} for you` : "you chose it on this page";
  const title = kind === "relay" ? `TURN over TLS through the relay ${by}` : `TURN over UDP to ${by}`;
  const protocol = kind === "relay" ? "TLS" : "UDP";
  return { kind, protocol, iceServers, hosts, title, why };
}

// The media settings with fresh credentials in every place.
export function withCredentials(media, credentials) {
  const { username, password: credential } = credentials;
  const fresh = (servers) => servers.map((server) => ({ ...server, username, credential }));
  const alternatives = Object.fromEntries(
    Object.entries(media.alternatives).map(([name, servers]) => [name, fresh(servers)]),
  );
  return { ...media, credentials, alternatives, ice_servers: fresh(media.ice_servers) };
}
