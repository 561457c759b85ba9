"""``relay demo --wan``: one sentence over a bad path in three ways, a table, and files to listen to.

From the command down to the packet. ``netns``, ``link`` and ``line`` are used by tests and benchmarks, too.

commands     ``relay demo --wan`` on the terminal
report       the table, JSON, and the files
story        all of it: three calls at the same time, each scored and rendered
call         one call, in which both sides say the sentence
way          what a call needs to know of its way, and the path that all three share
real         the ways over a real path, with coturn; needs root
simulated    the ways over a simulated path, in this process

The sound

sentence     what is said, as G.711
voice        both ends of a stream, under SRTP
playout      a jitter buffer: what is there in time
concealment  what is heard in place of the rest
sound        samples, and WAV files of them

The real path

netns        network namespaces without names
link         one direction of a line, as a model without I/O and clock
line         two namespaces, and a line between them
servers      coturn and a relay, in a namespace

The simulated path

paths        UDP and TCP on loopback, as a long path passes them on
tcp_model    what comes when over TCP on a path that loses
"""
