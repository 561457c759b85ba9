"""Programs for operators that ask a running relay over its admin listener: top, capture, calls and explain.

top       the calls now
capture   the packets of one
calls     the calls that have ended, and what became of one
listener  where they ask, and with which token; ``asking`` is how
times     reads the times that people write
"""
