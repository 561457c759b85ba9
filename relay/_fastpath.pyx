# cython: auto_pickle=False, autotestdict=False
"""Python's face of the compiled data plane: a ``Worker`` runs in a thread of its own, and carries packets alone.

Here Python puts commands, takes events and reads snapshots. ``relay/plane/compiled/engine.pxd`` says what a worker is
made of. What it does with a packet is in the layers beside that file; ``relay/plane/compiled/__init__.py`` lists them
and says which way a packet takes through them. Nothing in them holds the GIL. A connection takes a lock when it begins and when
it ends, but no packet does.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset

from relay.plane.compiled.engine cimport (
    CHUNK, DATAGRAMS_A_TURN, DATAGRAM_BYTES, DATAGRAM_ROOM, DROPS, FLOW_ASKS, FLOW_CARRIER_SHIFT, FLOW_FOLLOWS,
    FLOW_RELEASES, OP_ADMIT, OP_ADOPT, OP_ANSWER, OP_ATTACH, OP_CERTIFICATES, OP_CLOSE, OP_CONFIGURE, OP_HOLD, OP_LISTEN,
    OP_MOVE, OP_NETWORKS, OP_REFUSE, OP_RELEASE, OP_REPLACE, OP_REQUEST, OP_SHARE, OP_STOP, OP_TAP, OP_TELL, OP_TICKET_KEY,
    OP_UNLISTEN, OP_UNTAP, OP_UPGRADE, REASONS, STATE_HTTP, STATE_MEDIA, STATE_WAITING, Bounds, Command, Connection,
    Counters, Engine, Event, FlowRecord, Shared,
)
from relay.plane.compiled.slots cimport ON_COMMAND, at, close_open, find, watch
from relay.plane.compiled.counting cimport add_counters
from relay.plane.compiled.ending cimport free_what_is_read
from relay.plane.compiled.commands cimport close_listeners, on_commands
from relay.plane.compiled.loop cimport run
from relay.plane.compiled.leaves cimport openssl as tls
from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.allowance cimport UserAllowance, leave_user_allowance, open_user_allowance
from relay.plane.compiled.leaves.contexts cimport (
    AUTHORITIES_DIGEST_BYTES, TicketKey, build_contexts, free_contexts, text_of,
)
from relay.plane.compiled.leaves.delays cimport Delays, add_delays
from relay.plane.compiled.leaves.figures cimport delays_of, histogram_of, streams_of
from relay.plane.compiled.leaves.live cimport (
    LIVE_BUFFERS, LIVE_CONNECTIONS, LIVE_CONTEXTS, LIVE_SESSIONS, LIVE_SOCKETS, RELAY_COUNTS, alive, calloc,
    count_live, free, malloc,
)
from relay.plane.compiled.leaves.reserve cimport clear_reserve, give_up
from relay.plane.compiled.leaves.ring cimport close_ring, open_ring, put, relay_add, relay_load, take
from relay.plane.compiled.leaves.schedule cimport TRAFFICS, waiting_bytes
from relay.plane.compiled.leaves.sources cimport (
    open_sources, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)
from relay.plane.compiled.leaves.stun cimport datagram_unit, load16
from relay.plane.compiled.leaves.tap cimport (
    Tap, TapRecord, copy_out, drop_tapped, end_tap, leave_tap, open_tap, peek_tapped,
)
from relay.plane.compiled.leaves.uplink cimport SOCKADDR_BYTES
from relay.plane.compiled.leaves.websocket cimport WEB_MAX_HEAD_BYTES, WEB_TEXT, write_head
from relay.plane.compiled.leaves.wire cimport new_wire_method

from dataclasses import fields

from relay.plane import api
from relay.quality.meter import clock_table

if len(api.CloseReason) != REASONS:
    raise ImportError("relay._fastpath was built for other reasons to close: build it again")

# OpenSSL has few numbers for kinds of BIO, so there is one for the whole process.
cdef tls.BIO_METHOD* WIRES = new_wire_method()
if WIRES == NULL:
    raise MemoryError

cdef enum:
    COMMAND_RING = 4096
    EVENT_RING = 16384
    READ_TRIES = 20                 # of a snapshot, while flows end


cdef int learn_close_codes(Shared* shared) except -1:
    cdef int number
    cdef bytes word
    for number, reason in enumerate(api.CloseReason):
        shared.close_codes[number] = api.CLOSE_CODES.get(reason, 0)
        word = reason.encode()
        snprintf(shared.close_words[number], 32, b"%s", <const char*> word)
    return 0


cdef class SharedState:
    """What the workers of one plane share: how many connections there are, and how fast they come."""

    cdef Shared* shared

    def __cinit__(self):
        self.shared = <Shared*> calloc(1, sizeof(Shared))
        if self.shared == NULL or open_sources(&self.shared.sources) < 0:
            raise MemoryError
        learn_close_codes(self.shared)
        self.shared.wires = WIRES
        pthread_mutex_init(&self.shared.descriptors, NULL)

    def __enter__(self) -> None:
        """No worker accepts inside the block, so descriptors that are given up there can be taken there."""
        pthread_mutex_lock(&self.shared.descriptors)

    def __exit__(self, *_) -> None:
        pthread_mutex_unlock(&self.shared.descriptors)

    def __dealloc__(self):
        if self.shared != NULL:
            free(self.shared.sources.slots)
            free(self.shared)


cdef tuple counters_of(Counters* counters):
    cdef int traffic
    return (
        counters.uplink_packets, counters.uplink_bytes, counters.downlink_packets, counters.downlink_bytes,
        counters.retransmissions, *[counters.drops[drop] for drop in range(DROPS)],
        *[counters.drops_by_traffic[traffic] for traffic in range(TRAFFICS)],
    )


# Copies a record of each flow, and sums up what these flows and all earlier ones have counted.
cdef uint32_t copy_flows(
    Engine* e, uint32_t slots, FlowRecord* records, Counters* totals, Delays* delays
) noexcept nogil:
    cdef uint32_t i, count = 0
    cdef Connection* c
    cdef int64_t now = posix.monotonic_us()
    totals[0] = e.ended
    delays[0] = e.ended_delays
    for i in range(slots):
        c = at(e, i)
        if c.state == STATE_MEDIA:
            add_counters(totals, &c.counters)
            add_delays(delays, &c.delays)
            write_record(e, c, &records[count], now)
            count += 1
    return count


cdef void write_record(Engine* e, Connection* c, FlowRecord* record, int64_t now) noexcept nogil:
    record.identity = <uint64_t> e.number << 56 | <uint64_t> (c.generation & 0xFFFFFF) << 32 | c.index
    # The worker does not stop for this: it may have heard something after ``now``.
    record.age_us = now - c.opened_us if now > c.opened_us else 0
    record.heard_us = now - c.heard_us if now > c.heard_us else 0
    record.allocated_us = c.allocated_until_us - now if c.allocated_until_us > now else 0
    record.counters = c.counters


cdef extern from "<sys/prctl.h>" nogil:
    enum:
        PR_SET_NO_NEW_PRIVS
    int prctl(int option, unsigned long value, unsigned long a, unsigned long b, unsigned long c)


def forgo_new_privileges() -> None:
    """Nothing that this thread executes from now on gains privileges, nor what threads that it starts do.

    Raises OSError.
    """
    if prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(posix.errno, "no_new_privs was refused")


def live_objects() -> dict:
    """How many of each kind are alive in the process; empty but in a debug build."""
    if not RELAY_COUNTS:
        return {}
    return {
        "connections": alive(LIVE_CONNECTIONS), "sessions": alive(LIVE_SESSIONS), "contexts": alive(LIVE_CONTEXTS),
        "sockets": alive(LIVE_SOCKETS), "buffers": alive(LIVE_BUFFERS),
    }


cdef inline int flow_flags(int carrier, bint releases, bint asks, bint follows) noexcept nogil:
    return (
        carrier << FLOW_CARRIER_SHIFT | (FLOW_RELEASES if releases else 0) | (FLOW_ASKS if asks else 0)
        | (FLOW_FOLLOWS if follows else 0)
    )


# The settings under the names of Bounds: seconds become microseconds, and the clocks a table of all payload types.
cdef dict by_name(settings):
    cdef dict values = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name.endswith("_s"):
            values[field.name.removesuffix("s") + "us"] = round(value * 1e6)
        else:
            values[field.name] = value
    values["payload_clocks"] = clock_table(settings.payload_clocks)
    return values


cdef int require_stun(bytes message) except -1:
    cdef const uint8_t* data = <const uint8_t*> <char*> message
    if not 0 < len(message) <= 65535 or data[0] >= 0x40 or not datagram_unit(data, len(message)):
        raise ValueError("expected a STUN message")
    return 0


cdef class UserShare:
    """What the flows of one user may carry in a second, together. The user's flows may be on several workers."""

    cdef UserAllowance* allowance
    cdef object __weakref__

    def __cinit__(self):
        self.allowance = open_user_allowance()
        if self.allowance == NULL:
            raise MemoryError

    def __dealloc__(self):
        leave_user_allowance(self.allowance)


cdef class Worker:
    """One data-plane thread: ``run`` it in a thread of its own; every other method is called with the GIL.

    Numbers of connections are those of ``relay.plane.api.ConnectionId``, with the worker's number on top.
    """

    cdef Engine* engine
    cdef SharedState owner

    def __cinit__(self, int number, SharedState owner not None):
        cdef Engine* e = <Engine*> calloc(1, sizeof(Engine))
        cdef int i
        if e == NULL:
            raise MemoryError
        self.engine = e
        self.owner = owner
        e.number = number
        e.shared = owner.shared
        e.epoll = e.command_fd = e.event_fd = -1
        clear_reserve(&e.reserve)
        e.datagrams = <uint8_t*> malloc(DATAGRAMS_A_TURN * DATAGRAM_BYTES)
        if (
            e.datagrams == NULL
            or open_ring(&e.commands, sizeof(Command), COMMAND_RING) < 0
            or open_ring(&e.events, sizeof(Event), EVENT_RING) < 0
        ):
            raise MemoryError
        for i in range(DATAGRAMS_A_TURN):
            e.vectors[i].iov_base = e.datagrams + i * DATAGRAM_BYTES + DATAGRAM_ROOM
            e.vectors[i].iov_len = DATAGRAM_BYTES - DATAGRAM_ROOM - 4
            e.messages[i].msg_hdr.msg_iov = &e.vectors[i]
            e.messages[i].msg_hdr.msg_iovlen = 1
        e.epoll = posix.epoll_create1(posix.EPOLL_CLOEXEC)
        e.command_fd = posix.eventfd(0, posix.EFD_NONBLOCK | posix.EFD_CLOEXEC)
        e.event_fd = posix.eventfd(0, posix.EFD_NONBLOCK | posix.EFD_CLOEXEC)
        if e.epoll < 0 or e.command_fd < 0 or e.event_fd < 0:
            raise OSError(posix.errno, "no descriptors for a data-plane worker")
        watch(e, posix.EPOLL_CTL_ADD, e.command_fd, posix.EPOLLIN, <uint64_t> ON_COMMAND << 56)

    def __dealloc__(self):
        cdef Engine* e = self.engine
        cdef Event event
        cdef uint32_t i
        if e == NULL:
            return
        on_commands(e)              # those that came after the last turn
        while e.events.items != NULL and take(&e.events, &event):
            free(event.data)
        close_listeners(e)
        close_open(e.epoll)
        close_open(e.command_fd)
        close_open(e.event_fd)
        if e.contexts != NULL:
            free_contexts(e.contexts)
        for i in range(e.slots):
            free_what_is_read(at(e, i))
        for i in range(e.slots // CHUNK):
            free(e.chunks[i])
        close_ring(&e.commands)
        close_ring(&e.events)
        free(e.datagrams)
        free(e.networks)
        free(e)

    @property
    def event_fd(self) -> int:
        """Readable when there are events to take."""
        return self.engine.event_fd

    @property
    def turns(self) -> int:
        """How often it has gone round; wraps. It does so at least once a second."""
        return self.engine.turns

    def run(self) -> None:
        """Carry packets until ``stop`` was called and the last connection has ended."""
        self.engine.now_us = posix.monotonic_us()
        with nogil:
            run(self.engine)

    # Commands

    cdef int send(self, int op, uint64_t identity, int number, int flag, bytes data) except -1:
        cdef Command command
        memset(&command, 0, sizeof(command))
        self.fill(&command, op, identity, number, flag, data)
        return self.push(&command)

    cdef int send_flow(
        self, int op, uint64_t identity, int udp, bytes target, int flag, int64_t age_us, int moves, bytes data
    ) except -1:
        cdef Command command
        memset(&command, 0, sizeof(command))
        command.age_us, command.moves = age_us, moves
        if len(target) > SOCKADDR_BYTES:
            raise ValueError("expected a sockaddr_in, a sockaddr_in6 or nothing")
        command.target_size = <uint32_t> len(target)
        memcpy(command.target, <char*> target, command.target_size)
        self.fill(&command, op, identity, udp, flag, data)
        return self.push(&command)

    cdef int fill(
        self, Command* command, int op, uint64_t identity, int number, int flag, bytes data
    ) except -1:
        command.op, command.identity, command.number, command.flag = op, identity, number, flag
        if data is not None and len(data):
            command.size = <uint32_t> len(data)
            command.data = malloc(command.size)
            if command.data == NULL:
                raise MemoryError
            memcpy(command.data, <char*> data, command.size)
        return 0

    cdef int push(self, Command* command) except -1:
        cdef uint64_t one = 1
        for _ in range(10000):
            if put(&self.engine.commands, command):
                posix.write(self.engine.command_fd, &one, sizeof(one))
                return 0
            with nogil:
                posix.usleep(100)   # the worker takes them as fast as it turns; a second means that it hangs
        raise RuntimeError("the data-plane worker takes no commands")

    def set_certificates(self, list groups not None, list authorities not None, bytes digest not None) -> None:
        """Groups of (names, [(chain, key, staple), …]), all bytes: chain and key in PEM, the staple in DER or empty.

        ``authorities`` (DER) may sign certificates of clients; ``digest`` has 32 bytes, others for others. Raises
        ValueError with OpenSSL's words.
        """
        cdef Command command
        if len(digest) != AUTHORITIES_DIGEST_BYTES:
            raise ValueError(f"a digest has {AUTHORITIES_DIGEST_BYTES} bytes")
        memset(&command, 0, sizeof(command))
        command.op = OP_CERTIFICATES
        command.data = build_contexts(groups, authorities, digest, &self.engine.ticket_keys)
        self.push(&command)

    def use_ticket_key(self, bytes key not None) -> None:
        """Make session tickets with these 80 random bytes; the key before still opens them, older ones do not."""
        if len(key) != sizeof(TicketKey):
            raise ValueError("a ticket key has 80 bytes")
        self.send(OP_TICKET_KEY, 0, -1, 0, key)

    def configure(self, settings not None) -> None:
        """Use the bounds of these PlaneSettings. Raises ValueError for a payload type or clock that cannot be."""
        cdef Bounds bounds = by_name(settings)
        cdef bytes copied = (<char*> &bounds)[:sizeof(bounds)]
        self.send(OP_CONFIGURE, 0, -1, 0, copied)

    def use_networks(self, bytes entries not None) -> None:
        """Judge newcomers by these networks: see ``relay.plane.networks.ClientNetworks.pack``."""
        self.send(OP_NETWORKS, 0, -1, 0, entries)

    def listen(self, int fd, int asks) -> None:
        """Accept on a listening socket, which is the worker's from here.

        ``asks`` is the place of what clients are asked for in its enumeration.
        """
        self.send(OP_LISTEN, 0, fd, asks, None)

    def unlisten(self) -> None:
        """Close the listening sockets."""
        self.send(OP_UNLISTEN, 0, -1, 0, None)

    def hold(self, bint held) -> None:
        """Accept nobody until told otherwise."""
        self.send(OP_HOLD, 0, -1, held, None)

    def adopt(self, int fd, bytes preread not None, uint64_t adoption_id, bytes client not None, int asks) -> None:
        """Take over a connection; the ADOPTED event tells its number.

        ``client`` is a sockaddr, empty if it is the other end of the socket; ``asks`` as for ``listen``.
        """
        self.send_flow(OP_ADOPT, adoption_id, fd, client, asks, 0, 0, preread)

    def attach(
        self, uint64_t identity, int udp, bytes target not None, bint releases, bint asks, bint follows, int64_t age_us
    ) -> None:
        """Start the flow on a UDP socket, which is the worker's while the flow lives.

        ``target`` is where to connect the socket to before it first sends, as a sockaddr; empty if it is connected.
        ``asks`` to have users reported; ``follows`` to have a 300 reported; ``age_us`` is how old its media may grow
        here, -1 for what the bounds say.
        """
        self.send_flow(OP_ATTACH, identity, udp, target, flow_flags(0, releases, asks, follows), age_us, 0, None)

    def replace(self, uint64_t identity, int udp, bytes target not None) -> None:
        """Go on from another socket, or with -1 give the client its 437 or 300. ``target`` as for ``attach``."""
        self.send_flow(OP_REPLACE, identity, udp, target, 0, 0, 0, None)

    def upgrade(
        self, uint64_t identity, bytes response not None, int carrier, int udp, bytes target not None, bint releases,
        bint asks, bint follows, int64_t age_us
    ) -> None:
        """Leave HTTP with this response; the rest as for ``attach``. ``carrier`` is its place in the enumeration."""
        cdef int flags = flow_flags(carrier, releases, asks, follows)
        self.send_flow(OP_UPGRADE, identity, udp, target, flags, age_us, 0, response)

    def move(self, uint64_t identity, int udp, bytes target not None, int error, int64_t age_us, int moves) -> None:
        """Have a session go on from this socket, the worker's from here; -1 and an errno where there is none.

        ``target`` as for ``attach``; ``moves`` counts the session's moves, this one included.
        """
        self.send_flow(OP_MOVE, identity, udp, target, error, age_us, moves, None)

    def tell(self, uint64_t identity, bytes text not None) -> None:
        """Send the client of a session a text message, in UTF-8."""
        cdef uint8_t[WEB_MAX_HEAD_BYTES] head
        cdef uint64_t length = len(text)
        cdef uint32_t size = write_head(head + WEB_MAX_HEAD_BYTES, WEB_TEXT, length)
        cdef bytes frame = (<char*> head)[WEB_MAX_HEAD_BYTES - size:WEB_MAX_HEAD_BYTES] + text
        self.send(OP_TELL, identity, -1, 0, frame)

    def request(self, uint64_t identity, bytes message not None) -> None:
        """Send the upstream of a session a STUN message. Raises ValueError if it is not one."""
        require_stun(message)
        self.send(OP_REQUEST, identity, -1, 0, message)

    def admit(self, uint64_t identity) -> None:
        """Forward the Allocate that waits."""
        self.send(OP_ADMIT, identity, -1, 0, None)

    def refuse(self, uint64_t identity, bytes response not None) -> None:
        """Answer the Allocate that waits with this STUN message. Raises ValueError if it is not one."""
        require_stun(response)
        self.send(OP_REFUSE, identity, -1, 0, response)

    def answer(self, uint64_t identity, bytes response not None) -> None:
        """Give the client this STUN message for the grant that waits. Raises ValueError if it is not one."""
        require_stun(response)
        self.send(OP_ANSWER, identity, -1, 0, response)

    def close(self, uint64_t identity, int reason) -> None:
        """End a connection."""
        self.send(OP_CLOSE, identity, reason, 0, None)

    def share(self, uint64_t identity, UserShare user not None) -> None:
        """Count what a flow carries as its user's. The command owns a share of that, until the flow takes it over."""
        cdef Command command
        memset(&command, 0, sizeof(command))
        command.op, command.identity, command.number, command.data = OP_SHARE, identity, -1, user.allowance
        relay_add(&user.allowance.owners, 1)
        try:
            self.push(&command)
        except BaseException:
            leave_user_allowance(user.allowance)
            raise

    def tap(self, uint64_t identity) -> TapReader:
        """Copy the datagrams of a flow from now on, and end an earlier reader of it. The caller closes the reader."""
        cdef TapReader reader = TapReader.__new__(TapReader)
        reader.worker, reader.identity = self, identity
        reader.tap = open_tap()
        if reader.tap == NULL:
            raise MemoryError
        self.send_tap(OP_TAP, identity, reader.tap)
        return reader

    # The command owns a share of the tap, which is given up if the command cannot be put.
    cdef int send_tap(self, int op, uint64_t identity, Tap* tap) except -1:
        cdef Command command
        memset(&command, 0, sizeof(command))
        command.op, command.identity, command.number, command.data = op, identity, -1, tap
        try:
            return self.push(&command)
        except BaseException:
            end_tap(tap)
            raise

    def release(self, uint64_t identity) -> None:
        """Free a closed connection, of which everything has been read."""
        self.send(OP_RELEASE, identity, -1, 0, None)

    def stop(self) -> None:
        """End all connections; ``run`` returns when the last has ended."""
        self.send(OP_STOP, 0, -1, 0, None)

    def let_go(self) -> None:
        """Close the sockets in commands that came too late. Call it once ``run`` has returned."""
        on_commands(self.engine)

    # Events and figures

    def take_events(self) -> list:
        """(notice, number, message, move, errno) of each event since the last call, in order."""
        cdef uint64_t rung
        cdef Event event
        cdef bytes data
        cdef list events = []
        posix.read(self.engine.event_fd, &rung, sizeof(rung))
        while take(&self.engine.events, &event):
            data = (<char*> event.data)[:event.size] if event.data != NULL else b""
            relay_add(&self.engine.message_bytes, -<int64_t> event.size)
            free(event.data)
            events.append((
                event.notice, event.identity | <uint64_t> self.engine.number << 56, data, event.number, event.fault))
        return events

    cdef Connection* slot(self, object identity) except NULL:
        cdef Connection* c = find(self.engine, <uint64_t> identity & 0x00FFFFFFFFFFFFFF)
        if c == NULL:
            raise KeyError(identity)
        return c

    def client(self, identity) -> tuple:
        """(whether it is IPv6, port, packed address) of the client."""
        cdef Connection* c = self.slot(identity)
        cdef const uint8_t* address = <const uint8_t*> &c.client
        cdef bint ipv6 = (<uint16_t*> address)[0] == posix.AF_INET6
        return ipv6, load16(address + 2), address[8:24] if ipv6 else address[4:8]

    def opened(self, identity) -> tuple:
        """(server name, number of the ALPN protocol, TLS version) of a connection whose handshake is done."""
        cdef Connection* c = self.slot(identity)
        return text_of(c.server_name), c.alpn, text_of(c.version)

    def take_pipe(self, identity) -> int:
        """Control's end of an HTTP connection; the caller owns it."""
        cdef Connection* c = self.slot(identity)
        count_live(LIVE_SOCKETS, -(c.their_pipe >= 0))
        fd, c.their_pipe = c.their_pipe, -1
        return fd

    def give_up_reserve(self, identity) -> None:
        """Close the descriptors that are kept free for a connection; may be repeated."""
        give_up(&self.slot(identity).reserve)

    def awaits(self, identity, bint http) -> bool:
        """True for a connection that may become a flow: TURN that waits for attach, or HTTP."""
        cdef Connection* c = find(self.engine, <uint64_t> identity & 0x00FFFFFFFFFFFFFF)
        return c != NULL and c.state == (STATE_HTTP if http else STATE_WAITING)

    def allocated(self, identity) -> bool:
        """True while the flow has an allocation; False also for a connection that is gone."""
        cdef Connection* c = find(self.engine, <uint64_t> identity & 0x00FFFFFFFFFFFFFF)
        return c != NULL and c.state == STATE_MEDIA and c.allocated_until_us > posix.monotonic_us()

    def carries(self, identity) -> bool:
        """True for a flow that has an allocation, or media over CONNECT-UDP."""
        cdef Connection* c = find(self.engine, <uint64_t> identity & 0x00FFFFFFFFFFFFFF)
        return c != NULL and c.state == STATE_MEDIA and (c.allocated_until_us != 0 or c.heard_media_us != 0)

    def moves(self, identity) -> int:
        """How often a session has moved, as far as its worker has come."""
        cdef Connection* c = self.slot(identity)
        return c.carriage.moves if c.carriage != NULL else 0

    def adoption_id(self, identity) -> int:
        """The number under which Python adopted a connection."""
        return self.slot(identity).adoption_id

    def counters(self, identity) -> tuple:
        """Counters of a connection."""
        return counters_of(&self.slot(identity).counters)

    def record(self, identity) -> bytes:
        """The FlowRecord of a connection, also of one that has ended."""
        cdef FlowRecord record
        cdef int64_t now = posix.monotonic_us()
        cdef Connection* c = self.slot(identity)
        write_record(self.engine, c, &record, now)
        return (<char*> &record)[:sizeof(record)]

    def flow(self, identity) -> tuple | None:
        """What is known of a flow now, or was known at its end; None if the connection has been released.

        (username, queued bytes, age of the oldest of them in us, delays, (rtt, variation, retransmits, unsent) or None,
        RTCP packets and streams of the uplink, the same of the downlink)
        """
        cdef Connection* c = find(self.engine, <uint64_t> identity & 0x00FFFFFFFFFFFFFF)
        cdef int64_t now = posix.monotonic_us(), oldest
        if c == NULL:
            return None
        oldest = c.schedule.oldest_us
        link = c.link
        return (
            (<char*> c.username)[:c.username_size] if c.username != NULL else b"",
            waiting_bytes(&c.schedule),
            max(0, now - oldest) if oldest else 0,
            delays_of(&c.delays),
            (link.rtt_us, link.rtt_variation_us, link.retransmits, link.unsent_bytes) if link.known else None,
            c.uplink_meter.rtcp if c.uplink_meter != NULL else 0,
            streams_of(c.uplink_meter, now),
            c.downlink_meter.rtcp if c.downlink_meter != NULL else 0,
            streams_of(c.downlink_meter, now),
        )

    def closed(self, identity) -> tuple:
        """(reason, fault, OpenSSL's words, first bytes) of a connection that has ended.

        The fault of a handshake is OpenSSL's number for what is wrong with the client's certificate, or 0.
        """
        cdef Connection* c = self.slot(identity)
        return c.reason, c.fault, text_of(c.failure), (<char*> c.first_bytes)[:8]

    def take_flow(self, identity) -> tuple:
        """What an ended flow leaves behind.

        (UDP socket, microseconds until its allocation ends, allocating, last authenticated request, moves of a session)

        The caller owns the socket, which is -1 if there was no flow.
        """
        cdef Connection* c = self.slot(identity)
        cdef bytes request = (<char*> c.request)[:c.request_size] if c.request != NULL else b""
        cdef int64_t left = c.allocated_until_us - posix.monotonic_us() if c.allocated_until_us else 0
        count_live(LIVE_SOCKETS, -(c.udp >= 0))
        fd, c.udp = c.udp, -1
        return fd, left, bool(c.allocating), request, c.carriage.moves if c.carriage != NULL else 0

    def flows(self) -> tuple:
        """(records, counters from the start, delays from the start): a FlowRecord for each flow.

        The worker does not stop meanwhile.
        """
        cdef uint32_t slots = relay_load(&self.engine.slots), count = 0
        cdef FlowRecord* records = <FlowRecord*> malloc((slots + 1) * sizeof(FlowRecord))
        cdef Counters totals
        cdef Delays delays
        cdef int64_t ends
        if records == NULL:
            raise MemoryError
        with nogil:
            for _ in range(READ_TRIES):
                ends = relay_add(&self.engine.ends, 0)
                count = copy_flows(self.engine, slots, records, &totals, &delays)
                if not ends & 1 and relay_add(&self.engine.ends, 0) == ends:
                    break
        try:
            return (<char*> records)[:count * sizeof(FlowRecord)], counters_of(&totals), delays_of(&delays)
        finally:
            free(records)

    def histograms(self) -> tuple:
        """Uplink and downlink time in the relay: ([(end of the bucket in us, count)], sum in us) of each."""
        return histogram_of(&self.engine.uplink_us), histogram_of(&self.engine.downlink_us)

    def figures(self) -> tuple:
        """(open connections, accepted, closed by reason)."""
        cdef Engine* e = self.engine
        return e.live, e.accepted, [e.closed[reason] for reason in range(REASONS)]


cdef class TapReader:
    """Python's end of a tap. What is not taken in time is missed: the ring holds 1 MiB, with headers of 24 bytes."""

    cdef Worker worker              # None once it is closed
    cdef uint64_t identity
    cdef Tap* tap                   # NULL once it is closed
    cdef uint64_t missed_before     # when it was

    def __dealloc__(self):
        if self.tap != NULL:
            leave_tap(self.tap)

    @property
    def missed(self) -> int:
        """Datagrams that found no room."""
        return self.missed_before if self.tap == NULL else self.tap.missed

    @property
    def ended(self) -> bool:
        """True if nothing more will come; what has come can still be taken."""
        return self.tap == NULL or relay_load(&self.tap.ended) != 0

    def take(self, int limit) -> list:
        """At most this many of what has come: (kind, monotonic time in us, missed just before it, bytes).

        Kind 0 is uplink, 1 downlink; 2 is the sockaddr of the flow's own address, for all that follow.
        """
        cdef TapRecord record
        cdef bytes data
        cdef list taken = []
        while self.tap != NULL and len(taken) < limit and peek_tapped(self.tap, &record):
            data = PyBytes_FromStringAndSize(NULL, record.size)
            copy_out(self.tap, self.tap.head + <uint32_t> sizeof(TapRecord), PyBytes_AS_STRING(data), record.size)
            drop_tapped(self.tap, &record)
            taken.append((record.kind, record.at_us, record.missed, data))
        return taken

    def close(self) -> None:
        """Let the worker copy no more. May be repeated."""
        cdef Tap* tap = self.tap
        cdef Worker worker = self.worker
        if tap == NULL:
            return
        self.missed_before = tap.missed
        self.tap, self.worker = NULL, None
        worker.send_tap(OP_UNTAP, self.identity, tap)
