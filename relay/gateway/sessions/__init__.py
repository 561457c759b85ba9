"""Sessions of ``media.v1``: the relay's side of docs/media.v1.md, and how a client comes back to one."""
