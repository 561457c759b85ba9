"""The data plane: ``api`` is the contract, and two planes keep it. Neither imports the other.

compiled/     the plane that serves: threads of ``relay._fastpath``
reference/    its slow, obvious twin on asyncio

Both share what is beside ``api``:

alternates           where an upstream may send a flow (300 Try Alternate)
certificates         TLS: protocols, ciphers, certificates by name, the words for handshakes that fail
client_certificates  those of clients (mutual TLS): who is asked for one, who may sign it, whose it is
endings              the reason for an error, and what the log says of it; all reasons are in ``api.CloseReason``
listening            sockets that share one address
networks             which clients are served, and for which the bounds on one source do not count
settings             bounds and deadlines, as control tells them
source_ports         the UDP sockets of flows, from ports that do not rest
taps                 copies of what a flow sends and receives
uplink               what an error of such a socket means; the clients of ``client/`` ask it too
"""
