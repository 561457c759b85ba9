// An official socket.io server: node server.js VERSION PORT OPTIONS; says {"event":"ready","port":N} and what happens.
"use strict";
const http = require("http");
const [version, port, options] = [process.argv[2], Number(process.argv[3]), JSON.parse(process.argv[4])];
const library = require(`socket.io-${version}`);

const say = (event) => process.stdout.write(JSON.stringify(event) + "\n");
const server = http.createServer((request, response) => {
  response.setHeader("Set-Cookie", ["a=1; Path=/", "b=2; Path=/"]);
  response.end(`rest ${request.method} ${request.url}`);
});
const io = version === "2" ? library(server, options) : new library.Server(server, options);

io.on("connection", (socket) => {
  const headers = socket.handshake.headers;
  say({ event: "connection", sid: socket.conn.id, transport: socket.conn.transport.name, headers });
  socket.conn.on("upgrade", () => say({ event: "upgrade", sid: socket.conn.id }));
  socket.on("echo", (value, answer) => answer(value));
  socket.on("disconnect", (reason) => say({ event: "disconnect", sid: socket.conn.id, reason }));
  socket.emit("hello", { port: server.address().port });
});
server.listen(port, "127.0.0.1", () => say({ event: "ready", port: server.address().port }));
process.stdin.on("end", () => process.exit(0)).resume();
