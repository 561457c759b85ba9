"""Faults under running calls, one after another: what others notice of them, and what is left when they are over.

``python -m loadtest.bench.faults``; ../README.md says what it measures, and how to read it.

kinds          the faults: how each is made and ended, and what proves that it was there
measuring      one fault, from a fresh relay to the verdict
scene          a relay, two upstreams and calls; what the relay has, and what it has counted
calls          clients of the packet engine, in two groups
processes      the relay and the upstream that is struck, as processes
upstream       the program of that upstream
watched_relay  the program of that relay, which also says how many tasks it has
"""
