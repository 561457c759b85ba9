"""What operators see: the admin listener, and everything that it serves.

listener    HTTP for operators and their tools
view        calls, upstreams and counters as plain values; ``api`` has them as JSON, ``events`` once a second
queries     what requests to the API ask for
metrics     the same for Prometheus; ``operation`` adds the last reload, and limits
cluster     the relays that are up, for both
dashboard   the files of ``relay/web``
capture     the packets of a flow
sockets     unix sockets, and TLS
hosts       the names that the listener answers to
access      pages of other origins, and requests without the token, are refused
refusals    what was refused: counted by reason, and logged
tokens      the token and its hash

This room looks into all others. Only ``app``, which puts the relay together, looks into this one. The programs that
ask the listener are in ``relay.console``.
"""
