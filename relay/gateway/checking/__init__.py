"""What ``relay check-config`` looks for in a configuration that can be used, in addition to ``app.check``.

exposure    what it leaves open: listeners, balancers' networks, files with secrets. ``relay serve`` logs this, too
machine     addresses that this machine does not have
reach       whether upstreams and servers of signaling answer (``--resolve``), as a table
"""
