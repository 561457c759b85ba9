// An official socket.io client: node client.js VERSION URL OPTIONS. It says what happens to it, a JSON object a line, and
// echoes what it is told to on its standard input: {"echo": value} or {"echo": {"hex": "..."}} for binary. {"emit": [name,
// data]} sends an event and says what it was answered. With version 4 it also says which events it is told.
"use strict";
const [version, url, options] = [process.argv[2], process.argv[3], JSON.parse(process.argv[4])];
const library = require(`socket.io-client-${version}`);

const say = (event) => process.stdout.write(JSON.stringify(event) + "\n");
const socket = (library.io || library)(url, options);

const engine = () => socket.io.engine;
// Before the first packet of socket.io, which an upgrade may overtake.
socket.io.on("open", () => {
  engine().once("upgrade", () => say({ event: "upgrade", transport: engine().transport.name }));
  engine().on("upgradeError", () => say({ event: "upgradeError" }));
  engine().on("ping", () => say({ event: "ping" }));
});
socket.on("connect", () => say({ event: "connect", sid: engine().id, transport: engine().transport.name }));
socket.on("hello", (value) => say({ event: "hello", ...value }));
socket.on("disconnect", (reason) => say({ event: "disconnect", reason }));
socket.on("connect_error", (error) => say({ event: "connect_error", message: String(error.message || error), data: error.data }));
if (socket.onAny) socket.onAny((name, data) => say({ event: "told", name, data }));

const toHex = (value) => (Buffer.isBuffer(value) || value instanceof ArrayBuffer ? { hex: Buffer.from(value).toString("hex") } : value);
let waiting = "";
process.stdin.on("data", (data) => {
  const lines = (waiting + data).split("\n");
  waiting = lines.pop();
  for (const line of lines) {
    const { echo, emit } = JSON.parse(line);
    if (emit) {
      socket.emit(emit[0], emit[1], (answer) => say({ event: "answer", name: emit[0], ...answer }));
      continue;
    }
    const value = echo && echo.hex !== undefined ? Buffer.from(echo.hex, "hex") : echo;
    socket.emit("echo", value, (back) => say({ event: "echo", value: toHex(back), transport: engine().transport.name }));
  }
});
process.stdin.on("end", () => {
  socket.close();
  // The process ends by itself when what is still on its way over a poll has arrived. This is for a server that hangs.
  setTimeout(() => process.exit(0), 4000).unref();
});
