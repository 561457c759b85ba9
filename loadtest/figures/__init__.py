"""What was measured, as values that add up. Pure: neither clock nor I/O.

timings    how long things took, in microseconds, and what failed
interval   one second of a test, which adds up across processes
quality    delays and losses to a MOS
record     all intervals and incidents of a test, as they were written line by line
"""
