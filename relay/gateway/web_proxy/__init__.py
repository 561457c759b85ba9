"""The relay as the clients' explicit web proxy: CONNECT and proxy.pac on listeners of its own, in clear.

``proxy`` has a connection's life; ``http`` reads its one request and writes its one page, ``basic_auth`` knows users,
``destinations`` says where they may go, and ``tunnel`` carries what does not end here. A CONNECT to a name of our own
certificates becomes a connection of the data plane, like any other.
"""
