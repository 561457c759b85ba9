"""The packet engine: the media of thousands of simulated calls, in a thread of its own without the GIL.

engine   for Python: ``Engine``, and what it tells
plans    what a client and a stream are to do
windows  what was counted in a window of time
run      a program: calls of one server for some seconds, as the benchmarks start it
logins   a program: logins beside them
sink     a program: the far end, which sends everything back
processes  what a server has used

``_engine`` is header-only Cython (``.pxd``), in which each file knows only those before it:

openssl    what a client and SRTP use of OpenSSL, beyond the leaves of the compiled plane
kernel     what the engine asks of the kernel, beyond them
srtp       AES_CM_128_HMAC_SHA1_80
heap       what is due next
carriers   units on the wire, for each carrier
windows    counters and histograms
engine     the data dictionary: clients, streams, and the thread
addresses  IPv4 and IPv6: in the kernel, in STUN, in words
ending     what Python is told, and the end of clients and streams
transport  a client's connection
requests   STUN messages of a client
streams    voice: its schedule, and the judgement of what comes back
client     a client's life
commands   what Python has decided
"""
