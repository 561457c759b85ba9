"""Load testing: the packet engine and the benchmarks that compare servers.

engine  simulated calls in a thread of their own
bench   what a relay costs beside other servers, as programs to run
"""
