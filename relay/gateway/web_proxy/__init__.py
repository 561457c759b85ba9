"""The relay as the clients' explicit web proxy: CONNECT and proxy.pac on listeners of its own, in clear.

A CONNECT to a name of our own certificates becomes a connection of the data plane, like any other.

web_proxy     the listeners, and the life of a connection
http          its one request, and the page that it may get
basic_auth    users and passwords; ``guesses`` slows down clients that try many
destinations  where clients may go
tunnel        the bytes that are passed on
"""
