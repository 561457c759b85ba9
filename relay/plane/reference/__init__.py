"""The reference plane: the contract on asyncio, obvious before it is fast. The compiled plane is compared with it.

plane              the verbs, and the table of connections
listener, reserve  accepting newcomers, with the descriptors that they will need
newcomers          who may come in
connection         one client, from its first byte to its last

What a client says
------------------
intake             bytes of the transport, a piece in each turn
hello, tls         the handshake, and TLS between two buffers
first_bytes        TURN or HTTP
handover           HTTP, over a pair of sockets to control
carriers           how each carrier frames media
media              the media of one connection: what the client says goes up, what the upstream says goes down
session_media      the same where control holds the allocation
admission          who may allocate
pings              signs of life of a WebSocket, and what may come only so often between them

The UDP leg
-----------
flow               the socket, the counters, and what stays at the upstream
allocation         whether there is an allocation, as far as the messages that pass say
allowance          how much a flow may carry in a second, and all flows of a user
naming             whom its Allocates name, until the upstream has proven it
turn_flow          requests sent again, fresh ports, silence
question           what a flow itself asks of a silent upstream
allocation_watch   flows without an allocation end
traffic            what a unit is, by its first bytes

The way down
------------
downlink           written at once, or later in small records
schedule           what waits, and what is dropped
pace, client_link  whether TCP is behind, and what it knows of the way to the client
delays, tap        how long packets waited; copies for a capture
"""
