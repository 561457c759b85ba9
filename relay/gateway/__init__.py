"""The control plane: it decides where flows go, watches upstreams, and answers HTTP.

serve            the process: signals in, one ``ready`` line out
app              puts all that follows together; starts, drains, stops and reloads it
read_ahead       the configuration's files, read before a reload
admin/           what operators see
web_proxy/       CONNECT and proxy.pac
http/            HTTP on the TLS port, and what leaves it for the data plane
sessions/        sessions of media.v1
signaling/       the reverse proxy for socket.io and REST
entitlement/     who may place calls
routing/         which upstream a new flow gets; upstreams, their names and their health
calls/           how each call sounds, and what is kept of it
lines            log lines that clients cause, limited

These are floors, from the top down: each imports only what comes after it in this list. ``signaling`` and
``entitlement`` do not know each other, nor do ``routing`` and ``calls``. The control plane sees a media packet in one
case only: when an operator captures a flow.
"""
