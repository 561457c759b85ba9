"""STUN and TURN hosts of the emulator: UDP on a native thread or in Python, TCP and TLS on the asyncio loop.

hosts     the cloud: host y of region x is 127.0.x.y
host      what every host is: its addresses, lifetime, switch and counters
native    a host whose data ``_native`` carries
slow      a host whose data Python carries: the twin that tests compare with
relaying  a server and its relayed sockets on the asyncio loop, for ``slow`` and ``streams``
streams   listeners for TCP and TLS
rounds    what all their connections together may take of a turn of the loop
sockets   UDP sockets
counters  what a host counts

``_native`` is header-only Cython (``.pxd``): ``path`` is the data dictionary, ``datagrams`` what it asks of the kernel,
``tables`` who may send what to whom, ``uplink`` and ``downlink`` the two ways, ``commands`` what Python has decided.
"""
