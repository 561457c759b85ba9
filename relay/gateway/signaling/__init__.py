"""The reverse proxy for socket.io and REST behind the relay's own name.

``proxy`` has a request's life; ``http_rules`` say what of a request may go on, ``upstreams`` to whom, by health and by
the socket.io session that ``engineio`` reads; ``splice`` carries the bytes behind a 101. Media never comes here.
"""
