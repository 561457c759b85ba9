// npm's ws as a client: node websocket.js VERSION URL OPTIONS. It says what happens to it, a JSON object a line, and does
// what it is told to on its standard input: {"text": "..."}, {"hex": "..."}, {"fragments": ["hex", ...]}, {"ping": "hex"},
// {"close": [code, reason]}.
"use strict";
const WebSocket = require("ws");
const [url, options] = [process.argv[3], JSON.parse(process.argv[4])];

const say = (event) => process.stdout.write(JSON.stringify(event) + "\n");
const socket = new WebSocket(url, options.subprotocol, { servername: options.servername });

socket.on("open", () => say({ event: "open", subprotocol: socket.protocol, extensions: socket.extensions }));
socket.on("message", (data, isBinary) =>
  say(isBinary ? { event: "binary", hex: data.toString("hex") } : { event: "text", text: data.toString() }),
);
socket.on("ping", () => say({ event: "ping" }));
socket.on("pong", (data) => say({ event: "pong", hex: data.toString("hex") }));
socket.on("close", (code, reason) => say({ event: "close", code, reason: reason.toString() }));
socket.on("error", (error) => say({ event: "error", message: String(error.message || error) }));

const act = (told) => {
  if (told.text !== undefined) socket.send(told.text);
  if (told.hex !== undefined) socket.send(Buffer.from(told.hex, "hex"));
  if (told.fragments) {
    const last = told.fragments.length - 1;
    told.fragments.forEach((hex, index) => socket.send(Buffer.from(hex, "hex"), { binary: true, fin: index === last }));
  }
  if (told.ping !== undefined) socket.ping(Buffer.from(told.ping, "hex"));
  if (told.close) socket.close(...told.close);
};
let waiting = "";
process.stdin.on("data", (data) => {
  const lines = (waiting + data).split("\n");
  waiting = lines.pop();
  for (const line of lines) act(JSON.parse(line));
});
process.stdin.on("end", () => process.exit(0));
