from typing import Self, final

_Happening = tuple[int, int, int, int, int, tuple[int, ...], str]
_Stream = tuple[int, tuple[int, ...]]
_Window = tuple[int, int, tuple[int, ...], tuple[dict[int, int], ...], list[_Stream]]

def live_objects() -> dict[str, int]: ...
def leave_memory(blocks: int) -> None: ...

@final
class TlsContext:
    def __new__(cls, authorities: bytes | None, version: int) -> Self: ...

@final
class PacketEngine:
    @property
    def event_fd(self) -> int: ...
    @property
    def first_ssrc(self) -> int: ...
    def __new__(cls, max_clients: int, max_streams: int, tick_us: int) -> Self: ...
    def run(self) -> None: ...
    def stop(self) -> None: ...
    def open(
        self,
        number: int,
        context: TlsContext | None,
        carrier: int,
        server: bytes,
        ipv6: bool,
        reflects: bool,
        lifetime_s: int,
        patience_s: float,
        rebind_s: float,
        texts: tuple[bytes, ...],
        peers: list[bytes],
    ) -> None: ...
    def close(self, number: int) -> None: ...
    def bind(self, number: int, peer: bytes) -> None: ...
    def talk(
        self,
        number: int,
        sender: int,
        peer: int,
        receiver: int,
        packet_bytes: int,
        times_us: tuple[int, int, int, int, int, int],
        packets: int,
        sending: bytes,
        receiving: bytes,
    ) -> None: ...
    def silence(self, number: int) -> None: ...
    def take_happenings(self, limit: int) -> list[_Happening]: ...
    def swap_window(self, shows_streams: bool) -> _Window: ...
