"""One datagram to a Unix socket of this machine: nobody waits for it, and nobody answers."""

from __future__ import annotations

import socket


def send(name: str, text: str) -> None:
    """Send a text to a path, or to an abstract name, which begins with @ (unix(7)). Raises OSError."""
    address = f"\0{name[1:]}" if name.startswith("@") else name
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        # Its queue may be full, and calls must not wait for a service manager.
        sender.setblocking(False)
        sender.sendto(text.encode(), address)


def upgrade_answer(pid: int) -> str:
    """Where ``relay upgrade`` waits for the answer of the relay with this process id."""
    return f"@cloud9-relay/upgrade/{pid}"
