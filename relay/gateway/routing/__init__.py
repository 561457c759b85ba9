"""Where flows go: the upstreams, their health and their names, and the choice among them.

flows        begins, moves and counts all flows
unallocated  how many flows of one source may be without an allocation
routes       from a server name to a region, and to the best upstream of it
upstreams    what is known of each upstream: addresses, health, load
health       watches the upstreams, and goes to another address of a name when one does not answer
probe        one question to an upstream, and what its answer proves
rounds       the loop of everything that watches upstreams
resolve      from a name to addresses that may be connected to; ``lookups`` asks DNS
release      ends allocations that clients have left behind
"""
