"""A whole floor in one process: the emulated cloud, and a relay in front of it.

relays    a relay that serves while a block runs; waits for its upstreams
emulate   ``relay emulate``: starts the cloud, and with --with-relay the relay, and stays until it is told to stop
people    who can log in, as the database has them
printing  what it prints when all of it runs
commands  the command line of ``relay emulate``
"""
