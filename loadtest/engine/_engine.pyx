# cython: auto_pickle=False, autotestdict=False
"""Python's face of the packet engine: ``run`` it in a thread of its own, which serves all clients and streams.

Python puts commands and takes happenings and windows; nothing else passes between the two, and no packet waits for Python.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from loadtest.engine.carriers cimport CARRIERS, Carrier, is_datagram
from loadtest.engine.client cimport on_events, serve_clients
from loadtest.engine.commands cimport begin_window, drain, drop_commands, on_commands, wake
from loadtest.engine.ending cimport free_client, free_ended, free_stream
from loadtest.engine.engine cimport (
    BIND, CLOSE, EVENTS_A_TURN, MAX_PACKET_BYTES, MAX_PEERS, MAX_SNAPSHOTS, ON_COMMAND, OPEN, SILENCE, SOCKADDR_BYTES,
    SPARE_HAPPENINGS, STOP, SWAP, TALK, TEXTS, VALUES, Client, Command, CommandKind, Endpoint, Engine, Happening, Plan,
    Snapshot, Stream, Totals, chance,
)
from loadtest.engine.heap cimport close_heap, open_heap
from loadtest.engine.kernel cimport PR_SET_TIMERSLACK, POLLIN, prctl, push, wait_readable
from loadtest.engine.openssl cimport (
    EVP_MAC_CTX_free, EVP_MAC_CTX_new, EVP_MAC_fetch, EVP_MAC_free, EVP_MAC_init, SSL_CTX_load_verify_locations,
    SSL_CTX_set_max_proto_version, SSL_CTX_set_verify, SSL_MODE_ENABLE_PARTIAL_WRITE, SSL_VERIFY_NONE, SSL_VERIFY_PEER, TLS_client_method,
)
from loadtest.engine.srtp cimport SRTP_MASTER_BYTES, SRTP_TAG_BYTES, open_srtp
from loadtest.engine.streams cimport MIN_PACKET_BYTES, serve_streams
from loadtest.engine.windows cimport BUCKETS, COUNTERS, HISTOGRAMS, Window, bucket_edge
from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.live cimport (
    LIVE_BUFFERS, LIVE_CONTEXTS, LIVE_SESSIONS, LIVE_SOCKETS, RELAY_COUNTS, alive, calloc, count_live, free, leave_blocks,
)
from relay.plane.compiled.leaves.openssl cimport (
    ERR_clear_error, ERR_get_error, ERR_reason_error_string, OSSL_PARAM, OSSL_PARAM_construct_end,
    OSSL_PARAM_construct_utf8_string, SSL_CTX, SSL_CTX_free, SSL_CTX_new, SSL_CTX_set_min_proto_version,
    SSL_CTX_set_mode, SSL_CTX_set_read_ahead, SSL_CTX_up_ref, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER, TLS1_2_VERSION, TLS1_3_VERSION,
)
from relay.plane.compiled.leaves.ring cimport close_ring, open_ring, take

cdef enum:
    # Descriptors are the bound: Linux allows a process 2^20 of them at most.
    MAX_CLIENTS = 1 << 19
    MAX_STREAMS = 1 << 20
    # Packets that come often are carried together: a wake-up costs as much as several of them.
    GATHER_US = 200
    OFTEN_US = 1000
    # How long the thread sleeps if nothing is due.
    IDLE_US = 1000000
    # Python is woken this often at most.
    WAKE_US = 50000
    SWAP_PATIENCE_MS = 10000
    MAX_TICK_US = 100000


def live_objects() -> dict:
    """How many of each kind are alive in the process; empty but in a debug build."""
    if not RELAY_COUNTS:
        return {}
    return {
        "sockets": alive(LIVE_SOCKETS), "buffers": alive(LIVE_BUFFERS), "sessions": alive(LIVE_SESSIONS),
        "contexts": alive(LIVE_CONTEXTS),
    }


def leave_memory(int64_t blocks) -> None:
    """Let the module have only this many more blocks of memory, or -1: as many as there are. Only in a debug build."""
    leave_blocks(blocks)


cdef int require(bint holds, str what, value) except -1:
    if not holds:
        raise ValueError(f"{what}: {value} is out of range")
    return 0


cdef class TlsContext:
    """How clients speak TLS: with the authorities of a file, or trusting anybody; in this version, or 0 for any."""

    cdef SSL_CTX* context
    cdef bint verifies

    def __cinit__(self, bytes authorities, int version):
        cdef const char* path
        self.context = SSL_CTX_new(TLS_client_method())
        if self.context == NULL:
            raise MemoryError
        count_live(LIVE_CONTEXTS, 1)
        self.verifies = authorities is not None
        require(version in (0, TLS1_2_VERSION, TLS1_3_VERSION), "version of TLS", version)
        SSL_CTX_set_min_proto_version(self.context, version if version else TLS1_2_VERSION)
        SSL_CTX_set_max_proto_version(self.context, version)
        SSL_CTX_set_mode(self.context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER)
        # One read call takes all that has come, not a header and then a record.
        SSL_CTX_set_read_ahead(self.context, 1)
        SSL_CTX_set_verify(self.context, SSL_VERIFY_PEER if self.verifies else SSL_VERIFY_NONE, NULL)
        if self.verifies:
            path = authorities
            if SSL_CTX_load_verify_locations(self.context, path, NULL) != 1:
                reason = ERR_reason_error_string(ERR_get_error())
                ERR_clear_error()
                raise ValueError("unreadable" if reason == NULL else reason.decode())

    def __dealloc__(self):
        if self.context != NULL:
            count_live(LIVE_CONTEXTS, -1)
        SSL_CTX_free(self.context)


# The thread. Each turn takes what has come, sends what is due, and then does what Python has decided.

cdef void turn(Engine* e) noexcept nogil:
    cdef int i, count = posix.epoll_wait(e.epoll, e.events, EVENTS_A_TURN, 0)
    cdef uint64_t ready
    cdef Client* c
    cdef bint commanded = False, more
    e.now_us = posix.monotonic_us()
    for i in range(count):
        ready = e.events[i].data.u64
        if ready >> 56 == ON_COMMAND:
            commanded = True
            continue
        c = e.clients[<uint32_t> ready]
        if c != NULL:
            on_events(e, c, e.events[i].events)
    more = serve_streams(e)
    serve_clients(e)
    free_ended(e)
    if commanded:
        drain(e.command_fd)
        on_commands(e)
        free_ended(e)
    tell_python(e)
    if not more and count < EVENTS_A_TURN:
        pause(e)


cdef inline void tell_python(Engine* e) noexcept nogil:
    if e.asked and e.now_us - e.woken_us >= WAKE_US:
        e.asked = False
        e.woken_us = e.now_us
        wake(e.event_fd)


# Sleeps until something is due or comes; a little longer if packets come often.
cdef inline void pause(Engine* e) noexcept nogil:
    cdef int64_t now_us = posix.monotonic_us(), until_us = now_us + IDLE_US
    if e.due_streams.count and e.due_streams.items[0].us < until_us:
        until_us = e.due_streams.items[0].us
    if e.due_clients.count and e.due_clients.items[0].us < until_us:
        until_us = e.due_clients.items[0].us
    if e.asked and e.woken_us + WAKE_US < until_us:
        until_us = e.woken_us + WAKE_US
    if e.tick_us:
        posix.usleep(e.tick_us)
    elif e.carried and now_us - e.carried_us < OFTEN_US:
        posix.usleep(GATHER_US)
    elif until_us > now_us:
        wait_readable(e.epoll, until_us - now_us)
    if e.carried:
        e.carried_us = now_us
    e.carried = False


cdef int open_engine(Engine* e, uint32_t max_clients, uint32_t max_streams) except -1:
    cdef OSSL_PARAM[2] parameters
    cdef uint8_t[1] no_key
    cdef posix.epoll_event event
    cdef uint32_t room = 4
    while room < 2 * max_clients + max_streams + SPARE_HAPPENINGS:
        room *= 2
    e.epoll = e.command_fd = e.event_fd = e.swapped_fd = -1
    e.max_clients, e.max_streams = max_clients, max_streams
    posix.getrandom(&e.random, sizeof(e.random), 0)
    e.first_ssrc = <uint32_t> chance(e)
    e.clients = <Client**> calloc(max_clients, sizeof(Client*))
    e.streams = <Stream**> calloc(max_streams, sizeof(Stream*))
    e.window = <Window*> calloc(1, sizeof(Window))
    e.retired = <Window*> calloc(1, sizeof(Window))
    e.snapshots = <Snapshot*> calloc(MAX_SNAPSHOTS, sizeof(Snapshot))
    e.hmac = EVP_MAC_fetch(NULL, b"HMAC", NULL)
    e.signer = EVP_MAC_CTX_new(e.hmac)
    if (
        e.clients == NULL or e.streams == NULL or e.window == NULL or e.retired == NULL or e.snapshots == NULL or e.signer == NULL
        or not open_heap(&e.due_clients, max_clients) or not open_heap(&e.due_streams, max_streams)
        or open_ring(&e.happenings, sizeof(Happening), room) < 0
    ):
        raise MemoryError
    no_key[0] = 0
    parameters[0] = OSSL_PARAM_construct_utf8_string(b"digest", <char*> b"SHA1", 0)
    parameters[1] = OSSL_PARAM_construct_end()
    EVP_MAC_init(e.signer, no_key, 1, parameters)
    e.epoll = posix.epoll_create1(posix.EPOLL_CLOEXEC)
    e.command_fd = posix.eventfd(0, posix.EFD_NONBLOCK | posix.EFD_CLOEXEC)
    e.event_fd = posix.eventfd(0, posix.EFD_NONBLOCK | posix.EFD_CLOEXEC)
    e.swapped_fd = posix.eventfd(0, posix.EFD_NONBLOCK | posix.EFD_CLOEXEC)
    event.events, event.data.u64 = posix.EPOLLIN, <uint64_t> ON_COMMAND << 56
    if e.swapped_fd < 0 or posix.epoll_ctl(e.epoll, posix.EPOLL_CTL_ADD, e.command_fd, &event) < 0:
        raise OSError(posix.errno, "no descriptors for the packet engine")
    return 0


cdef void close_open(int fd) noexcept nogil:
    if fd >= 0:
        posix.close(fd)


cdef void close_engine(Engine* e) noexcept nogil:
    cdef uint32_t i
    drop_commands(e)
    free_ended(e)
    if e.clients != NULL:
        for i in range(e.max_clients):
            if e.clients[i] != NULL:
                free_client(e.clients[i])
    if e.streams != NULL:
        for i in range(e.max_streams):
            if e.streams[i] != NULL:
                free_stream(e.streams[i])
    close_open(e.epoll)
    close_open(e.command_fd)
    close_open(e.event_fd)
    close_open(e.swapped_fd)
    close_ring(&e.happenings)
    close_heap(&e.due_clients)
    close_heap(&e.due_streams)
    free(e.clients)
    free(e.streams)
    free(e.window)
    free(e.retired)
    free(e.snapshots)
    EVP_MAC_CTX_free(e.signer)
    EVP_MAC_free(e.hmac)
    free(e)


cdef int copy_address(bytes packed, Endpoint* address) except -1:
    cdef const char* octets = packed
    require(len(packed) in (16, SOCKADDR_BYTES), "bytes of a socket address", len(packed))
    memcpy(address.octets, octets, len(packed))
    address.size = <uint32_t> len(packed)
    return 0


# What Python has made of a plan, in the thread's words.
cdef Plan* build_plan(
    TlsContext context, int carrier, bint ipv6, bint reflects, uint32_t lifetime_s, double patience_s, double rebind_s,
    tuple texts
) except NULL:
    cdef size_t size = sizeof(Plan)
    cdef Plan* plan
    cdef char* to
    cdef const char* octets
    cdef bytes text
    cdef int i
    require(0 <= carrier < <int> CARRIERS, "carrier", carrier)
    require(len(texts) == <int> TEXTS, "texts of a plan", len(texts))
    require((context is None) == is_datagram(<Carrier> carrier), "TLS on carrier", carrier)
    for text in texts:
        size += len(text) + 1
    plan = <Plan*> calloc(1, size)
    if plan == NULL:
        raise MemoryError
    plan.carrier = <Carrier> carrier
    plan.ipv6, plan.reflects, plan.lifetime_s = ipv6, reflects, lifetime_s
    plan.patience_us = <int64_t> (patience_s * 1e6)
    plan.rebind_us = <int64_t> (rebind_s * 1e6)
    if context is not None:
        SSL_CTX_up_ref(context.context)
        plan.context, plan.verifies = context.context, context.verifies
    to = <char*> (plan + 1)
    for i in range(<int> TEXTS):
        text = texts[i]
        octets = text
        plan.texts[i], plan.sizes[i] = to, <uint32_t> len(text)
        memcpy(to, octets, len(text))
        to += len(text) + 1
    return plan


cdef dict buckets_of(const uint32_t* histogram):
    cdef dict buckets = {}
    cdef uint32_t i
    for i in range(<uint32_t> BUCKETS):
        if histogram[i]:
            buckets[bucket_edge(i)] = histogram[i]
    return buckets


# As ``end_stream`` tells them.
cdef tuple snapshot_of(const Snapshot* snapshot):
    cdef const int64_t* values = <const int64_t*> &snapshot.totals
    cdef int i
    cdef list totals = [values[i] for i in range(<int> (sizeof(Totals) // sizeof(int64_t)))]
    return snapshot.number, (*totals, snapshot.jitter_us)


cdef class PacketEngine:
    """The thread's state. Addresses of peers are four bytes in network order."""

    cdef Engine* engine

    def __cinit__(self, uint32_t max_clients, uint32_t max_streams, uint32_t tick_us):
        require(0 < max_clients <= MAX_CLIENTS, "number of clients", max_clients)
        require(tick_us <= MAX_TICK_US, "tick", tick_us)
        require(0 < max_streams <= MAX_STREAMS, "number of streams", max_streams)
        self.engine = <Engine*> calloc(1, sizeof(Engine))
        if self.engine == NULL:
            raise MemoryError
        self.engine.tick_us = tick_us
        open_engine(self.engine, max_clients, max_streams)

    def __dealloc__(self):
        if self.engine != NULL:
            close_engine(self.engine)

    @property
    def event_fd(self) -> int:
        """Readable when there are happenings to take."""
        return self.engine.event_fd

    @property
    def first_ssrc(self) -> int:
        """The SSRC of stream 0; that of stream n is greater by n, modulo 2^32."""
        return self.engine.first_ssrc

    def run(self) -> None:
        """Serve until ``stop``."""
        cdef Engine* e = self.engine
        with nogil:
            # The kernel may round a sleep up by the timer slack, 50 us by default.
            prctl(PR_SET_TIMERSLACK, 1)
            begin_window(e.window)
            while not e.stopping:
                turn(e)

    # Commands

    cdef Command* command(self, CommandKind kind, uint32_t number) except NULL:
        cdef Command* command = <Command*> calloc(1, sizeof(Command))
        if command == NULL:
            raise MemoryError
        command.kind, command.number = kind, number
        return command

    cdef int give(self, Command* command) except -1:
        if push(<void**> &self.engine.commands, command, <void**> &command.next):
            wake(self.engine.command_fd)
        return 0

    def stop(self) -> None:
        """Let ``run`` return after its turn."""
        self.give(self.command(STOP, 0))

    def open(
        self, uint32_t number, TlsContext context, int carrier, bytes server not None, bint ipv6, bint reflects,
        uint32_t lifetime_s, double patience_s, double rebind_s, tuple texts not None, list peers not None
    ) -> None:
        """Open a client. ``texts`` are in the order of ``Text``; ``peers`` are socket addresses, as ``server``."""
        cdef Client* c
        cdef Command* command
        cdef bytes peer
        require(number < self.engine.max_clients, "number of a client", number)
        require(len(peers) <= MAX_PEERS, "peers of a client", len(peers))
        c = <Client*> calloc(1, sizeof(Client))
        if c == NULL:
            raise MemoryError
        c.number, c.fd = number, -1
        try:
            c.plan = build_plan(context, carrier, ipv6, reflects, lifetime_s, patience_s, rebind_s, texts)
            copy_address(server, &c.plan.server)
            for peer in peers:
                copy_address(peer, &c.peers[c.peer_count].address)
                c.peer_count += 1
            command = self.command(OPEN, number)
        except BaseException:
            free_client(c)
            raise
        command.client = c
        self.give(command)

    def close(self, uint32_t number) -> None:
        """Let a client go. It is told as ``ENDED``."""
        self.give(self.command(CLOSE, number))

    def bind(self, uint32_t number, bytes peer not None) -> None:
        """Bind one more peer."""
        cdef Endpoint address
        cdef Command* command
        copy_address(peer, &address)
        command = self.command(BIND, number)
        command.address = address
        self.give(command)

    def talk(
        self, uint32_t number, uint32_t sender, uint32_t peer, uint32_t receiver, uint32_t packet_bytes,
        tuple times_us not None, uint64_t packets, bytes sending not None, bytes receiving not None
    ) -> None:
        """Begin a stream: ``times_us`` are its interval, mean spurt and pause, when a packet is late and when it is lost,
        and its start.
        A start of 0 is soon. It sends this many packets, or with 0 until it is silenced.
        """
        cdef Stream* s
        cdef Command* command
        cdef const uint8_t* keys = sending
        cdef bint opened
        require(number < self.engine.max_streams, "number of a stream", number)
        require(MIN_PACKET_BYTES <= packet_bytes <= MAX_PACKET_BYTES - SRTP_TAG_BYTES, "bytes of a packet", packet_bytes)
        require(len(sending) == len(receiving) == SRTP_MASTER_BYTES, "bytes of a master key", len(sending))
        require(times_us[0] > 0 and min(times_us) >= 0, "times of a stream", times_us)
        s = <Stream*> calloc(1, sizeof(Stream))
        if s == NULL:
            raise MemoryError
        s.number, s.sender, s.peer, s.receiver, s.packet_bytes = number, sender, peer, receiver, packet_bytes
        s.interval_us, s.talk_us, s.pause_us, s.late_us, s.patience_us, s.due_us = times_us
        s.left = packets
        # Low enough for a receiver that begins at no rollover (RFC 3711 section 3.3.1).
        s.first = <uint64_t> int.from_bytes(sending[:2], "big") & 0x7FFF
        s.next = s.judged = s.highest = s.first
        try:
            opened = open_srtp(&s.sending, self.engine.hmac, keys)
            keys = receiving
            if not opened or not open_srtp(&s.receiving, self.engine.hmac, keys):
                raise MemoryError
            command = self.command(TALK, number)
        except BaseException:
            free_stream(s)
            raise
        command.stream = s
        self.give(command)

    def silence(self, uint32_t number) -> None:
        """Let a stream end, once all of it is heard or lost. It is told as ``SILENCED``."""
        self.give(self.command(SILENCE, number))

    # What Python takes

    def take_happenings(self, uint32_t limit) -> list:
        """At most ``limit`` of them: kind, number, phase, cause, code, values, words."""
        cdef Engine* e = self.engine
        cdef Happening happening
        cdef list happenings = []
        cdef int i
        drain(e.event_fd)
        while <uint32_t> len(happenings) < limit and take(&e.happenings, &happening):
            happenings.append((
                <int> happening.kind, happening.number, <int> happening.phase, <int> happening.cause, happening.code,
                tuple([happening.values[i] for i in range(<int> VALUES)]),
                happening.words.decode("utf-8", "replace"),
            ))
        if <uint32_t> len(happenings) == limit:
            wake(e.event_fd)
        return happenings

    def swap_window(self, bint shows_streams) -> tuple:
        """End the current window: its time and CPU time in us, its counters, of each histogram its buckets, and streams.

        A bucket is the greatest value in it and how many there were. A stream is its number and its totals. Raises
        TimeoutError if the engine does not run.
        """
        cdef Engine* e = self.engine
        cdef Command* command
        cdef posix.pollfd watched
        cdef int ready
        cdef Window* w
        cdef int i
        cdef list histograms = []
        drain(e.swapped_fd)
        command = self.command(SWAP, 0)
        command.limit = MAX_SNAPSHOTS if shows_streams else 0
        self.give(command)
        watched.fd, watched.events, watched.revents = e.swapped_fd, POLLIN, 0
        with nogil:
            ready = posix.poll(&watched, 1, SWAP_PATIENCE_MS)
        if ready != 1:
            raise TimeoutError("the packet engine does not run")
        w = e.retired
        for i in range(<int> HISTOGRAMS):
            histograms.append(buckets_of(w.histograms[i]))
        return (
            w.ended_us - w.begun_us, w.cpu_us, tuple([w.counters[i] for i in range(<int> COUNTERS)]), tuple(histograms),
            [snapshot_of(&e.snapshots[i]) for i in range(<int> e.snapshot_count)],
        )
