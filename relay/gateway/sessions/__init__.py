"""Sessions of ``media.v1`` (docs/media.v1.md): the relay holds the TURN allocation of a client.

sessions      which connection is which, and what becomes of what a session leaves
session       one session, with all its transitions
client_side   what its client is told
search        which upstreams it has tried
channels      who waits for which channel
failures      what the upstream's errors mean for it
placing       takes it to an upstream
admitting     whether its user may have it
parking       allocations that wait for their client, and how many sessions each source and user has
returning     tokens, the socket that has waited, and how the plane gets it
allocation    what all of these hand around
"""
