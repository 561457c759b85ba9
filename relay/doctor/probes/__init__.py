"""Probes see: each opens sockets, ends at its deadline, and returns values of ``seen``. None of them judges.

context     what all share: the plan, the proxies that were found, the addresses of names, and how much at once
names       DNS
proxies     which proxy is to be used for each site: setting, environment, PAC, WPAD
sites       TCP, the tunnel of a proxy, TLS with its certificate, and HTTP
stream      one HTTP/1.1 request over TLS
websockets  WebSocket and polling of socket.io, and what becomes of frames
udp         STUN and TURN, and packets to a relayed port
carriers    the carriers of a relay
voice       voice over each path that works
"""
