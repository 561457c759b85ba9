"""The role of c9rest: login, user settings, credentials for the TURN hosts, and the logs of clients.

models     what clients send and get
throttle   slows down who guesses passwords
tokens     logins: who holds which token, and until when
media      the TURN hosts as a client is told of them, and short-lived credentials
client_logs  where uploaded logs go
service    the endpoints
"""
