"""The signaling servers' role (c9so): presence, lines and the exchange of media descriptions over socket.io.

messages    every message with its mark, as pydantic models: what goes over the wire, and its bounds
state       what a line is and what goes on on it: values, and how they are written for clients and for Redis
machines    the state machines of lines, as tables; pure
event_log   what has happened, in memory and in a file
invariants  reads such a log, and says what should never have happened
"""
