"""What operators see, and the tools that show it: the admin listener with all that it serves.

``listener`` serves ``api``, ``events`` and ``dashboard`` as ``view`` has them, ``metrics`` for Prometheus, and
``capture``; ``top`` and ``capture_file`` are the commands on its other side. It looks into everything; nothing else of
the gateway but ``app``, which puts it all together, looks into it.
"""
