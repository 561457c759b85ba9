"""The reverse proxy for socket.io and REST, which clients reach by the relay's own name. Media never comes here.

In the order in which a request meets them:

proxy         takes requests and ends them; has what they share
http_rules    what of a request may go on, and what the next server is told about the client
exchange      one request and its answer
pools         which servers may serve a request, by host, path, health and load
affinity      which server holds a session of socket.io; ``engineio`` reads the session's id
polling_only  which clients must not upgrade to WebSocket, because something on their way swallows its frames
connections   HTTP/1.1 connections to servers; ``addresses`` has where their names lead
upload        the body of a request, on its way to the server
answer        the answer, on its way to the client
splice        the bytes of both sides after a 101
refusals      what the relay answers by itself

``health`` asks the servers now and then whether they live.
"""
