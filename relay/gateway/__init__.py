"""The control plane: it decides where flows go, watches upstreams, and answers HTTP.

lines            log lines that clients cause, limited
descriptors      how many file descriptors are needed, may be had, and are kept for operators
plane_bounds     the configuration's bounds, as the data plane takes them
pauses           newcomers that wait: counted, and logged
accepting        what accepts for the control plane
listening        all listening sockets, and how they come and go
file_state       whether a file has changed
memory/          how much memory is left, and what is not begun when there is little
calls/           how each call sounds, and what is kept of it
cluster/         what several relays share in Redis: calls at once, sessions of socket.io, and who is up
certificates/    what clients are shown: which certificates serve, their files, and what is wrong with them
routing/         which upstream a new flow gets; upstreams, their names and their health
entitlement/     who may place calls
signaling/       the reverse proxy for socket.io and REST
sessions/        sessions of media.v1
http/            HTTP on the TLS port, and what leaves it for the data plane
balancers        whom balancers in front connect for (PROXY protocol), and their health checks
proxied          TLS listeners behind a balancer
web_proxy/       CONNECT and proxy.pac
admin/           what operators see
read_ahead       the configuration's files, read before a reload
checking/        what ``relay check-config`` warns of, and whom it can ask
hardening        what the process gives up at its start
departure        how the relay goes: the lame duck, the drain, the handover, and what is left at the end
app              puts all of these together; starts, drains, stops and reloads it
notify           what the service manager is told, and its watchdog
config_watch     whether the configuration's file has changed
inherited        what the process is given at its start: sockets, and the relay before it
successor        the next process: starts it, and hands over (``relay upgrade``)
serve            the process: signals in, one ``ready`` line out

These are floors, from the bottom up: each imports only what stands above it in this list. Neither ``signaling`` nor
``entitlement`` knows the other. The same holds for ``cluster``, ``certificates``, ``routing`` and ``calls``.

The control plane sees media packets in two cases only: when an operator captures a flow, and when a session's client
comes back. Then ``sessions/returning`` reads what the socket has received meanwhile, and drops the media.
"""
