"""HTTP on the TLS port.

site      serves the connections: the relay's own paths, and all others through the reverse proxy
closing   the one response of a connection that is not served here, such as one of the web proxy
upgrades  what leaves HTTP for the data plane: TURN and sessions over WebSocket, and CONNECT-UDP
"""
