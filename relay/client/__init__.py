"""The asyncio TURN client over UDP and TLS: ``turn`` drives the state machine, ``links`` own the sockets."""
