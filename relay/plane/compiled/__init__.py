"""The compiled plane: worker threads of ``relay._fastpath`` carry packets, and Python gives them their commands.

plane        the verbs of the contract
connections  what Python remembers of the workers' connections
events       the workers' notices become events
snapshots    what the workers have counted
tap          copies of a flow's datagrams
numbers      what Python and the workers count by
engine.pxd   the data dictionary: what a connection is made of, and what a worker owns
leaves/      byte work that knows neither connections nor workers: framing, STUN, queues, meters

Between ``leaves/`` and ``_fastpath``, which is Python's face of a worker, are the layers: functions on the data
dictionary that need neither the GIL nor Python. They are header-only Cython (``.pxd``), so that the compiler sees all
of a packet's way at once. Each cimports only the layers above it in this list, which is not the order of a packet:

up    loop.on_media, reading.on_client, uplink.on_stream and forward, upstream.send_up
down  loop.on_media, downlink.on_upstream, delivery.deliver, ending.write_client

What all the others stand on
----------------------------
slots       a connection's slot, its number, what epoll watches for it, and the lists of one turn
counting    counters, meters and taps of each packet, and its time in the relay
wheel       the one deadline of each connection
ending      the write to the client and the end of a connection, which call each other
messages    what control is told

The life of a connection
------------------------
arrival     accept and TLS handshake
delivery    units for the client: framed, encrypted and sent, or waiting while the client does not read
upstream    the UDP socket of a flow: sending, errors, ICMP
uplink      units of the client: cut out of the stream as its carrier frames them, and sent upstream
downlink    datagrams of the upstream: STUN answers are matched, and what is for the client is delivered
http        plain bytes to control over a pair of sockets, and back
reading     bytes of the client, decrypted: the first ones decide what it speaks, the others go to uplink or http
deadlines   what is due: handshake, first bytes, control's answer, STUN sent again, a silent upstream
commands    what control has decided
loop        a turn: epoll, media first, then newcomers, then what is due
"""
