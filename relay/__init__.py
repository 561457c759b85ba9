"""cloud9-relay: a firm's own relay between its Cloud9 clients, on TCP 443, and TURN servers, over UDP.

It terminates TCP and TLS on the LAN, where almost nothing is lost. Voice goes on over UDP, so that it does not freeze.
It never has a key to the voice: SRTP passes through unchanged.

Words used everywhere, in code, configuration, metrics and logs
---------------------------------------------------------------
connection  one TCP connection from a client
flow        a connection that carries media, with a UDP socket of its own
carrier     how media is framed on the client's side: ``turn`` is the stream of RFC 8656, ``websocket`` one TURN message
            in each message, ``session`` channels without TURN, ``connect-udp`` the capsules of RFC 9298
upstream    a UDP TURN server; a *region* is a named group of upstreams
signaling   what clients say over HTTP, socket.io and REST; a *signaling upstream* is one of the vendor's servers for it
route       from a server name (SNI) to a region
uplink      client to upstream; *downlink* is upstream to client
unit        one whole STUN message or ChannelData message of a stream
tunnel      a CONNECT through the web proxy whose bytes are passed on unchanged, over TCP
plane       an implementation of the data-plane contract; *control* is the gateway above it, which decides
leaf        a part of the compiled plane that knows nothing of connections and workers: a codec, a queue, a counter
twin        the same thing written twice, in Cython and in Python; tests compare the two

Folders, from the bottom up: each imports only what stands above it in this list
--------------------------------------------------------------------------------
addresses, name_patterns            addresses and who may be relayed to; what ``*.`` matches at the front of a name
sockaddr, errors                    addresses as sockets have them; the error tree
writing, rate_limit, timer, deadlines  whole files; token buckets; one deadline that moves; blocks that end in time
config/     the settings, one file for each topic
catalog/    the vendor's hosts, networks and ports as versioned data; allow-lists and PAC made of them
wire/       codecs: bytes to values and back; no I/O and no clock
turn/       TURN state machines, client and server; no I/O, ``now`` is an argument
quality/    the meter of RTP; delay and loss to R factor and MOS
output, tasks, logs         printing without waiting for a reader; background tasks that are kept and awaited; one line
                            of log for each change of state
local_datagrams             what another process of this machine is told, without waiting for it
garbage, bodies             garbage collection in a process that serves; bodies of HTTP
plane/      the data plane: the contract (``api``); ``compiled/``, threads of ``_fastpath``; ``reference/``, on asyncio
ca/         the firm's own certificate authority, for media hosts whose TLS the relay ends
client/     asyncio clients of sessions and of TURN over each carrier: for other programs, the health probe and the demo
doctor/     is this network ready, and if not, who must change what? Probes see, checks judge
gateway/    the control plane, in floors of its own: certificates, routing, calls, entitlement, signaling, sessions,
            http, web_proxy, admin; it decides, and no packet waits for it
console/    ``relay top``, ``capture``, ``calls``, ``explain`` and ``upgrade``, which ask a running relay
emulator/   the vendor's cloud on a laptop: login, signaling, APIs, portal and TURN hosts
floor/      the emulated cloud and a relay in front of it, in one process
demo/       softphones that place real SRTP calls through all of it; a spoken sentence over a bad path
cli/        serve, upgrade, top, calls, explain, capture, demo, emulate, doctor, check-config, admin-token, allowlist,
            catalog, ca

In addition, ``web/`` has the dashboard's pages, which the admin listener serves.
"""

__version__ = "0.1.0"
