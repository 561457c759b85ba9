"""The control plane: it decides where flows go, watches upstreams, and answers HTTP. It never sees a media packet.

serve, app            the process; all that follows put together, started, drained, stopped and reloaded
flows, routes         which upstream a new flow gets
upstreams, resolve    what is known of the TURN servers; names to addresses that may be connected to
health, release       the probes; allocations given back for clients that vanished
site, upgrades        HTTP on the TLS port, and what leaves it for the data plane
session, sessions     one session of media.v1, and all of them
call, calls, records  how each call sounds, and what is kept of it
admin/                what operators see
entitlement/          who may have voice
signaling/            the reverse proxy for socket.io and REST
web_proxy/            CONNECT and proxy.pac
"""
