"""TURN state machines (RFC 8489, RFC 8656): client, server, credentials, transactions. No I/O; ``now`` is an argument.

``now`` is in seconds of any monotonic clock. Only the expiry of credentials is a Unix time.

client         the client: requests in, messages and ``events`` out
server         the server: datagrams in, ``commands`` out; ``allocation`` is what it holds for one client
allocate       what an Allocate asks for
observer       who is told what the server grants; ``drops`` are the reasons why it passes something not on
authentication who has sent a request; ``credentials`` are the keys and nonces
answers        what the server sends back, kept for copies of the request
opening        Allocates that wait for their sockets
relayed_ports  the ports of the server's relayed addresses
transactions   requests that wait for their response over UDP
"""
