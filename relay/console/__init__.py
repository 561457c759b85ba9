"""Programs for operators that ask a running relay: all over its admin listener, but upgrade, which sends a signal.

top       the calls now
capture   the packets of one
calls     the calls that have ended, and what became of one
listener  where they ask, and with which token; ``asking`` is how
upgrade   has it hand over to a new process
times     reads the times that people write
"""
