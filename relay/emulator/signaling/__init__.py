"""The signaling servers' role (c9so): presence, lines and the exchange of media descriptions over socket.io.

messages    every message with its mark, as pydantic models: what goes over the wire, and its bounds
state       what a line is and what goes on on it: values, and how they are written for clients and for Redis
inputs      what can happen to a line
transitions  what each input does to a line
machines    the state machines of lines, as tables of these; pure
event_log   what has happened, in memory and in a file
invariants  reads such a log, and says what should never have happened
directory   what signaling asks of the keeper of firms and users
in_store    the same, asked of the emulator's database; the records of calls
shared      the lines and sessions that all processes share; in memory for one, ``shared_redis`` for several
parsing     what clients say, as models, or what is wrong with it
hub         takes what clients say, decides, stores, and has everyone concerned told
announcer   what clients are told, and who is told
entrance    who may log in now: a bounded number at once
housekeeping  deadlines, sessions that end, dead processes
delivery    queues of clients, and how messages reach them here and in other processes
server      the socket.io server, which bounds what a client can hold
"""

from relay.emulator.signaling.server import SignalingServer, serve_signaling

__all__ = ["SignalingServer", "serve_signaling"]
