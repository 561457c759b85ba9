"""What ``relay check-config`` looks for in a configuration. The relay itself looks at the files, too.

files       whether certificates, records, the catalog and authorities can be used
exposure    what it leaves open: listeners, balancers' networks, files with secrets. ``relay serve`` logs this, too
machine     addresses that this machine does not have
warnings    all of these together, except for the next one
reach       whether upstreams, servers of signaling and Redis answer (``--resolve``), as a table
"""
