"""Runs a load test: Locust in processes of its own, and everything after it, whatever becomes of them.

demo         the target ``demo``: a cloud and a relay on this machine
targets      the target of a test, checked before anything starts
locustfiles  whether a locustfile of one's own can be used
processes    Locust's command line, and its processes
progress     one line a second, for who waits
folders      where results go: each folder belongs to one run
faults       faults of the emulated cloud, while a test runs
supervise    all of it: from a profile to a verdict and its files
last_words   why Locust has ended early
capacity     the search for the knee
"""
