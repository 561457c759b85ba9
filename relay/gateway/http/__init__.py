"""HTTP on the TLS port.

site      serves the connections: the relay's own paths, and all others through the reverse proxy
upgrades  what leaves HTTP for the data plane: TURN and sessions over WebSocket, and CONNECT-UDP
"""
