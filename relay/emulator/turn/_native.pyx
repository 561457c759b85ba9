# cython: auto_pickle=False, autotestdict=False
"""Python's face of the native packet path: ``run`` it in a thread of its own, which carries all data of several hosts.

Python puts commands and takes requests; nothing else passes between the two, and no packet waits for Python. The order of
a packet's way: here ``run``, then uplink or downlink; ``tables`` says who may send what to whom, ``path`` is the data
dictionary, and ``commands`` carries out what Python has decided.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from relay.emulator.turn.commands cimport close_host, close_socket, drain, on_commands, push, remove, take_all, wake, watch
from relay.emulator.turn.downlink cimport flush, on_relayed
from relay.emulator.turn.path cimport (
    BATCH, BIND, CLOSE_HOST, DATAGRAM_BYTES, DROPS, EVENTS_A_TURN, HEAD_ROOM, INSTALL, MARK, MAX_ALLOCATIONS, MAX_HOSTS,
    ON_COMMAND, ON_HOST, ON_RELAYED, OPEN_HOST, PERMIT, REFRESH, REMOVE, REQUEST_RING, SLOT_BYTES, STOP, TO_CLIENT,
    TO_PEER, Arriving, Command, CommandKind, Engine, Host, Leaving, Request,
)
from relay.emulator.turn.tables cimport open_clients
from relay.emulator.turn.uplink cimport fill_crc_table, on_host
from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.live cimport (
    LIVE_BUFFERS, LIVE_SOCKETS, RELAY_COUNTS, alive, calloc, count_live, free, malloc,
)
from relay.plane.compiled.leaves.ring cimport close_ring, open_ring, relay_load, take

cdef enum:
    # A packet waits for half of this on the average, each way. Voice waits for tens of milliseconds elsewhere.
    GATHER_US = 300
    # Without other packets there is nothing to gather: one or a few calls do not wait.
    OFTEN_US = 1000


def live_objects() -> dict:
    """How many of each kind are alive in the process; empty but in a debug build."""
    if not RELAY_COUNTS:
        return {}
    return {"sockets": alive(LIVE_SOCKETS), "buffers": alive(LIVE_BUFFERS)}


cdef int prepare(Arriving* arriving) except -1:
    cdef int i
    arriving.slots = <uint8_t*> malloc(BATCH * SLOT_BYTES)
    if arriving.slots == NULL:
        raise MemoryError
    for i in range(BATCH):
        arriving.vectors[i].iov_base = arriving.slots + i * SLOT_BYTES + HEAD_ROOM
        arriving.vectors[i].iov_len = DATAGRAM_BYTES
        arriving.messages[i].msg_hdr.msg_iov = &arriving.vectors[i]
        arriving.messages[i].msg_hdr.msg_iovlen = 1
        arriving.messages[i].msg_hdr.msg_name = &arriving.addresses[i]
        arriving.messages[i].msg_hdr.msg_namelen = sizeof(posix.sockaddr_in)
    return 0


cdef void prepare_leaving(Leaving* leaving) noexcept nogil:
    cdef int i
    for i in range(BATCH):
        leaving.messages[i].msg_hdr.msg_iovlen = 1
        leaving.messages[i].msg_hdr.msg_namelen = sizeof(posix.sockaddr_in)


cdef void close_open(int fd) noexcept nogil:
    if fd >= 0:
        posix.close(fd)


# Each turn waits for epoll, carries data, sends what is for clients, and then does what Python has decided: what a turn
# has found in epoll is there until its end.
cdef void turn(Engine* e) noexcept nogil:
    cdef int i, count = posix.epoll_wait(e.epoll, e.events, EVENTS_A_TURN, -1)
    cdef uint64_t ready
    cdef bint commanded = False
    e.now_us = posix.monotonic_us()
    for i in range(count):
        ready = e.events[i].data.u64
        if ready >> 56 == ON_RELAYED:
            on_relayed(e, <uint32_t> ready)
        elif ready >> 56 == ON_HOST:
            on_host(e, <uint32_t> ready)
        else:
            commanded = True
    flush(e)
    if e.asked:
        e.asked = False
        wake(e.event_fd)
    if commanded:
        drain(e.command_fd)
        on_commands(e)
    gather(e)


# Packets that come often are carried together: a wake-up costs as much as several of them, and a pause that nobody hears
# brings many. The kernel holds what comes meanwhile.
cdef inline void gather(Engine* e) noexcept nogil:
    if not e.carried:
        return
    if not e.more and e.now_us - e.turned_us < OFTEN_US:
        posix.usleep(GATHER_US)
    e.turned_us = e.now_us
    e.carried = e.more = False


cdef class PacketPath:
    """The thread's state. Addresses are four bytes in network order; times are seconds of the monotonic clock."""

    cdef Engine* engine

    def __cinit__(self):
        cdef Engine* e = <Engine*> calloc(1, sizeof(Engine))
        cdef uint64_t seed
        cdef int i
        if e == NULL:
            raise MemoryError
        self.engine = e
        e.epoll = e.command_fd = e.event_fd = -1
        for i in range(MAX_HOSTS):
            e.hosts[i].fd = -1
        posix.getrandom(&seed, sizeof(seed), 0)
        fill_crc_table(e)
        prepare(&e.from_clients)
        prepare(&e.from_peers)
        prepare_leaving(&e.to_clients)
        if open_ring(&e.requests, sizeof(Request), REQUEST_RING) < 0 or open_clients(&e.clients, seed) < 0:
            raise MemoryError
        e.epoll = posix.epoll_create1(posix.EPOLL_CLOEXEC)
        e.command_fd = posix.eventfd(0, posix.EFD_NONBLOCK | posix.EFD_CLOEXEC)
        e.event_fd = posix.eventfd(0, posix.EFD_NONBLOCK | posix.EFD_CLOEXEC)
        if e.epoll < 0 or e.command_fd < 0 or e.event_fd < 0 or watch(e, e.command_fd, ON_COMMAND, 0) < 0:
            raise OSError(posix.errno, "no descriptors for the packet path")

    def __dealloc__(self):
        cdef Engine* e = self.engine
        cdef uint32_t i
        cdef int host
        if e == NULL:
            return
        on_commands(e)              # those that came after the last turn own sockets
        for i in range(e.allocation_room):
            if e.allocations[i] != NULL:
                remove(e, e.allocations[i])
        for host in range(MAX_HOSTS):
            close_host(&e.hosts[host])
        close_open(e.epoll)
        close_open(e.command_fd)
        close_open(e.event_fd)
        close_ring(&e.requests)
        free(e.clients.entries)
        free(e.allocations)
        free(e.from_clients.slots)
        free(e.from_peers.slots)
        free(e)

    @property
    def event_fd(self) -> int:
        """Readable when there are requests to take, or a mark was reached."""
        return self.engine.event_fd

    @property
    def mark(self) -> int:
        """The last mark that was reached."""
        return self.engine.mark

    def run(self) -> None:
        """Carry data until ``stop``."""
        cdef Engine* e = self.engine
        with nogil:
            while not e.stopping:
                turn(e)

    # Commands

    cdef Command* command(self, CommandKind kind, bytes data=b"") except NULL:
        cdef size_t size = len(data)
        cdef const char* message = PyBytes_AS_STRING(data)
        cdef Command* command = <Command*> calloc(1, sizeof(Command) + size)
        if command == NULL:
            raise MemoryError
        command.kind = kind
        command.fd = -1
        command.size = <uint32_t> size
        memcpy(command + 1, message, size)
        return command

    cdef int give(self, Command* command) except -1:
        if push(<void**> &self.engine.commands, command, <void**> &command.next):
            wake(self.engine.command_fd)
        return 0

    def stop(self) -> None:
        """Let ``run`` return after its turn."""
        self.give(self.command(STOP))

    def set_mark(self, int64_t mark) -> None:
        """``mark`` becomes this number when all earlier commands were carried out."""
        cdef Command* command = self.command(MARK)
        command.mark = mark
        self.give(command)

    def open_host(self, uint32_t host, int fd) -> None:
        """Serve this socket, which is the path's from here."""
        cdef Command* command
        require(host < MAX_HOSTS, "number of a host", host)
        command = self.command(OPEN_HOST)
        command.host, command.fd = host, fd
        count_live(LIVE_SOCKETS, 1)
        self.give(command)

    def close_host(self, uint32_t host) -> None:
        """Close the host's socket."""
        cdef Command* command
        require(host < MAX_HOSTS, "number of a host", host)
        command = self.command(CLOSE_HOST)
        command.host = host
        self.give(command)

    def pause(self, uint32_t host, bint paused) -> None:
        """Drop everything that comes to the host and to its relayed addresses, or no longer."""
        require(host < MAX_HOSTS, "number of a host", host)
        self.engine.hosts[host].paused = paused

    def ask_sends(self, uint32_t host, bint asks) -> None:
        """Have Python decide on each Send indication to this host, or no longer."""
        require(host < MAX_HOSTS, "number of a host", host)
        self.engine.hosts[host].asks_sends = asks

    def install(self, uint32_t allocation, uint32_t host, int fd, bytes ip, uint16_t port, double expires) -> None:
        """An allocation of a client. ``fd`` is the socket of its relayed address, and the path's from here."""
        cdef Command* command
        require(allocation < MAX_ALLOCATIONS, "number of an allocation", allocation)
        require(host < MAX_HOSTS, "number of a host", host)
        command = self.about(INSTALL, allocation, ip, port, expires)
        command.host, command.fd = host, fd
        count_live(LIVE_SOCKETS, 1)
        self.give(command)

    def refresh(self, uint32_t allocation, double expires) -> None:
        """An allocation ends at this time."""
        self.give(self.about(REFRESH, allocation, b"\0\0\0\0", 0, expires))

    def remove(self, uint32_t allocation) -> None:
        """Close the socket of a relayed address, and forget its allocation."""
        self.give(self.about(REMOVE, allocation, b"\0\0\0\0", 0, 0))

    def permit(self, uint32_t allocation, bytes ip, double expires) -> None:
        """A permission."""
        self.give(self.about(PERMIT, allocation, ip, 0, expires))

    def bind(self, uint32_t allocation, uint16_t channel, bytes ip, uint16_t port, double expires) -> None:
        """A channel. The permission for its peer is a command of its own."""
        cdef Command* command = self.about(BIND, allocation, ip, port, expires)
        command.channel = channel
        self.give(command)

    def send_to_client(self, uint32_t host, bytes ip, uint16_t port, bytes data) -> None:
        """Send an answer from the host's socket."""
        cdef Command* command
        require(host < MAX_HOSTS, "number of a host", host)
        command = self.about(TO_CLIENT, 0, ip, port, 0, data)
        command.host = host
        self.give(command)

    def send_to_peer(self, uint32_t allocation, bytes ip, uint16_t port, bytes data) -> None:
        """Send a datagram from a relayed address."""
        self.give(self.about(TO_PEER, allocation, ip, port, 0, data))

    cdef Command* about(
        self, CommandKind kind, uint32_t allocation, bytes ip, uint16_t port, double expires, bytes data=b""
    ) except NULL:
        cdef Command* command
        cdef const char* octets = PyBytes_AS_STRING(ip)
        require(len(ip) == 4, "length of an IPv4 address", len(ip))
        command = self.command(kind, data)
        command.allocation = allocation
        command.expires_us = <int64_t> (expires * 1e6)
        memcpy(&command.ip, octets, 4)
        command.port = <uint16_t> (port << 8 | port >> 8)
        return command

    # What Python takes and reads

    def take_requests(self, uint32_t limit) -> list:
        """At most ``limit`` requests: host, address, port, message. If more wait, ``event_fd`` stays readable."""
        cdef Engine* e = self.engine
        cdef Request request
        cdef list requests = []
        drain(e.event_fd)
        while <uint32_t> len(requests) < limit and take(&e.requests, &request):
            requests.append((
                request.host,
                PyBytes_FromStringAndSize(<char*> &request.ip, 4),
                (request.port << 8 | request.port >> 8) & 0xFFFF,
                PyBytes_FromStringAndSize(<char*> request.data, request.size),
            ))
        if relay_load(&e.requests.tail) != e.requests.head:
            wake(e.event_fd)
        return requests

    def counters(self, uint32_t host) -> tuple:
        """Allocations; packets and bytes up, packets and bytes down; then the drops in the order of ``path.pxd``."""
        cdef Host* h
        cdef int i
        require(host < MAX_HOSTS, "number of a host", host)
        h = &self.engine.hosts[host]
        return (
            h.allocations, h.uplink_packets, h.uplink_bytes, h.downlink_packets, h.downlink_bytes,
            *[h.drops[i] for i in range(<int> DROPS)],
        )

    def reset_counters(self, uint32_t host) -> None:
        """Begin at zero. Only for a host that is closed, and whose allocations are removed."""
        cdef Host* h
        require(host < MAX_HOSTS, "number of a host", host)
        h = &self.engine.hosts[host]
        h.uplink_packets = h.uplink_bytes = h.downlink_packets = h.downlink_bytes = 0
        memset(h.drops, 0, sizeof(h.drops))


cdef int require(bint holds, str what, value) except -1:
    if not holds:
        raise ValueError(f"{what}: {value} is out of range")
    return 0
