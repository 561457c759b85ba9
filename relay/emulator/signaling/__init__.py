"""The signaling servers' role (c9so): presence, lines and the exchange of media descriptions over socket.io.

messages    every message with its mark, as pydantic models: what goes over the wire, and its bounds
"""
