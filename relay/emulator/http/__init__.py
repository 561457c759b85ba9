"""How the emulator answers over HTTP: one site for all hosts, and endpoints that describe themselves.

fields      what is wrong with a field of a request, and what was expected, in plain English
errors      what a client is told when a request cannot be done: what, where, and what was expected
malformed   the same for requests that aiohttp's parser cannot read
endpoints   an endpoint: its host's role, method, path, mark and models; checks requests by them
openapi     the description of all endpoints, made from the same models
site        which role a Host header asks for, and one aiohttp application that serves them all
front       the connections: how many, how long they may be idle, and those that do not speak HTTP
files       the files of pages: read once, and with a strict policy for the browser
"""
