# cython: auto_pickle=False, autotestdict=False
"""Copies a hoot's packets to all who listen, in a thread that never takes the GIL: signaling is not delayed by voice.

Python puts commands into a ring, and takes events from another. ``room.pxd`` says what happens to a packet. On its path
nothing takes a lock, allocates or logs: the memory of a room is taken when it opens, all of it, and freed by Python.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from relay.emulator.sfu.room cimport (
    MAX_SUBSCRIBERS as _MAX_SUBSCRIBERS, MAX_TALKERS as _MAX_TALKERS, Room, allow, on_datagram, open_room,
    remove_subscriber, revoke, subscribe, unsubscribe,
)
from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.live cimport LIVE_BUFFERS, RELAY_COUNTS, alive, calloc, free, malloc
from relay.plane.compiled.leaves.ring cimport Ring, close_ring, open_ring, put, relay_load, relay_store, take

cdef enum:
    # A power of two. Where it is full, events are told later.
    EVENTS = 4096
    # Each has 90 KiB. The vendor's floors have a handful of hoots.
    _MAX_ROOMS = 64
    # Datagrams of one room before the others have their turn: 12 talkers send as many in 50 ms.
    BATCH = 32
    DATAGRAM_ROOM = 2048
    # How often it looks for subscribers that are gone.
    SWEEP_MS = 250
    WAKE = 0xFFFFFFFF

cdef enum Op:
    OP_OPEN, OP_CLOSE, OP_SUBSCRIBE, OP_UNSUBSCRIBE, OP_ALLOW, OP_REVOKE

cdef enum What:
    ROOM_CLOSED, SUBSCRIBER_VANISHED

cdef struct Command:
    int op
    uint32_t number
    uint32_t ssrc
    uint64_t address
    Room* room

cdef struct Event:
    int what
    uint32_t room
    uint32_t number

cdef struct Engine:
    int epoll, wake_fd, event_fd
    uint32_t stopping
    int64_t now_us, swept_us
    Ring commands, events
    Room* open[_MAX_ROOMS]               # the thread's view: those that it watches
    posix.iovec outgoing                # what all messages of all rooms point to
    posix.mmsghdr[BATCH] messages
    posix.iovec[BATCH] parts
    posix.sockaddr_in[BATCH] senders
    uint8_t[BATCH][DATAGRAM_ROOM] data

MAX_ROOMS = _MAX_ROOMS
MAX_SUBSCRIBERS = _MAX_SUBSCRIBERS
MAX_TALKERS = _MAX_TALKERS
CLOSED = ROOM_CLOSED
VANISHED = SUBSCRIBER_VANISHED


def live_objects() -> dict:
    """How many blocks of memory are alive in this module; empty except in a debug build."""
    return {"buffers": alive(LIVE_BUFFERS)} if RELAY_COUNTS else {}


# The thread

cdef inline void ring_bell(int fd) noexcept nogil:
    cdef uint64_t one = 1
    posix.write(fd, &one, sizeof(one))


cdef inline bint post(Engine* e, int what, uint32_t room, uint32_t number) noexcept nogil:
    cdef Event event
    event.what, event.room, event.number = what, room, number
    if not put(&e.events, &event):
        return False
    ring_bell(e.event_fd)
    return True


cdef void run(Engine* e) noexcept nogil:
    cdef posix.epoll_event[_MAX_ROOMS + 1] events
    cdef int i, count
    while not relay_load(&e.stopping):
        count = posix.epoll_wait(e.epoll, events, _MAX_ROOMS + 1, SWEEP_MS)
        e.now_us = posix.monotonic_us()
        for i in range(count):
            if events[i].data.u64 == WAKE:
                on_commands(e)
        # After the commands, which may have closed it: then its place is empty.
        for i in range(count):
            if events[i].data.u64 != WAKE and e.open[events[i].data.u64] != NULL:
                receive(e, e.open[events[i].data.u64])
        if e.now_us - e.swept_us >= SWEEP_MS * 1000:
            sweep(e)


# epoll tells again of what is left.
cdef void receive(Engine* e, Room* room) noexcept nogil:
    cdef int i, count
    for i in range(BATCH):
        e.messages[i].msg_hdr.msg_namelen = sizeof(posix.sockaddr_in)
    count = posix.recvmmsg(room.fd, e.messages, BATCH, posix.MSG_DONTWAIT, NULL)
    for i in range(count):
        on_datagram(
            room, &e.senders[i], e.data[i], e.messages[i].msg_len,
            e.messages[i].msg_hdr.msg_flags & posix.MSG_TRUNC, &e.outgoing, e.now_us)


cdef void on_commands(Engine* e) noexcept nogil:
    cdef uint64_t rung
    cdef Command command
    posix.read(e.wake_fd, &rung, sizeof(rung))
    while take(&e.commands, &command):
        if command.op == OP_OPEN:
            watch(e, command.room)
        elif command.op == OP_CLOSE:
            unwatch(e, command.room)
        elif command.op == OP_SUBSCRIBE:
            subscribe(command.room, command.number, command.address, e.now_us)
        elif command.op == OP_UNSUBSCRIBE:
            unsubscribe(command.room, command.number)
        elif command.op == OP_ALLOW:
            allow(command.room, command.number, command.ssrc, command.address)
        else:
            revoke(command.room, command.number)


# If the kernel has no memory to watch it, the room hears nobody and its subscribers vanish, which is told.
cdef inline void watch(Engine* e, Room* room) noexcept nogil:
    cdef posix.epoll_event event
    event.events = posix.EPOLLIN
    event.data.u64 = room.number
    e.open[room.number] = room
    posix.epoll_ctl(e.epoll, posix.EPOLL_CTL_ADD, room.fd, &event)


cdef inline void unwatch(Engine* e, Room* room) noexcept nogil:
    posix.epoll_ctl(e.epoll, posix.EPOLL_CTL_DEL, room.fd, NULL)
    room.closing = not post(e, ROOM_CLOSED, room.number, 0)
    if not room.closing:
        e.open[room.number] = NULL


# Where the ring of events is full, both are told at the next sweep.
cdef void sweep(Engine* e) noexcept nogil:
    cdef uint32_t place
    cdef int number
    cdef Room* room
    e.swept_us = e.now_us
    for number in range(_MAX_ROOMS):
        room = e.open[number]
        if room == NULL:
            continue
        if room.closing:
            unwatch(e, room)
            continue
        for place in range(room.count, 0, -1):
            if e.now_us - room.subscribers[place - 1].heard_us >= room.vanish_us:
                if post(e, SUBSCRIBER_VANISHED, room.number, room.subscribers[place - 1].number):
                    remove_subscriber(room, place - 1)


# Python's face

cdef class Fanout:
    """The thread's engine. ``commands`` is the size of its ring, a power of two."""

    cdef Engine* engine
    cdef Room* rooms[_MAX_ROOMS]         # Python's view: all whose memory is taken

    def __cinit__(self, uint32_t commands):
        if not commands or commands & (commands - 1):
            raise ValueError("the ring of commands has a power of two")
        self.engine = <Engine*> calloc(1, sizeof(Engine))
        if self.engine == NULL:
            raise MemoryError
        self.engine.epoll = self.engine.wake_fd = self.engine.event_fd = -1
        self.prepare(commands)

    cdef int prepare(self, uint32_t commands) except -1:
        cdef Engine* e = self.engine
        cdef posix.epoll_event event
        cdef int i
        if open_ring(&e.commands, sizeof(Command), commands) < 0 or open_ring(&e.events, sizeof(Event), EVENTS) < 0:
            raise MemoryError
        e.epoll = posix.epoll_create1(posix.EPOLL_CLOEXEC)
        e.wake_fd = posix.eventfd(0, posix.EFD_NONBLOCK | posix.EFD_CLOEXEC)
        e.event_fd = posix.eventfd(0, posix.EFD_NONBLOCK | posix.EFD_CLOEXEC)
        event.events = posix.EPOLLIN
        event.data.u64 = WAKE
        if e.epoll < 0 or e.wake_fd < 0 or e.event_fd < 0 or posix.epoll_ctl(e.epoll, posix.EPOLL_CTL_ADD, e.wake_fd, &event) < 0:
            raise OSError(posix.errno, "the fan-out thread lacks descriptors")
        for i in range(BATCH):
            e.parts[i].iov_base, e.parts[i].iov_len = e.data[i], DATAGRAM_ROOM
            e.messages[i].msg_hdr.msg_name = &e.senders[i]
            e.messages[i].msg_hdr.msg_iov = &e.parts[i]
            e.messages[i].msg_hdr.msg_iovlen = 1
        return 0

    def __dealloc__(self):
        cdef int number
        if self.engine == NULL:
            return
        # A descriptor that was never opened is -1, and closing it does nothing.
        posix.close(self.engine.epoll)
        posix.close(self.engine.wake_fd)
        posix.close(self.engine.event_fd)
        for number in range(_MAX_ROOMS):
            free(self.rooms[number])
        close_ring(&self.engine.commands)
        close_ring(&self.engine.events)
        free(self.engine)

    @property
    def event_fd(self) -> int:
        """Readable when there are events."""
        return self.engine.event_fd

    def run(self) -> None:
        """Carry packets until ``stop``; in a thread of its own."""
        with nogil:
            run(self.engine)

    def stop(self) -> None:
        """Have ``run`` return."""
        relay_store(&self.engine.stopping, 1)
        ring_bell(self.engine.wake_fd)

    # Each of these is False where the ring is full: then nothing has happened.

    cdef bint push(self, int op, Room* room, uint32_t number, uint32_t ssrc, uint64_t address) noexcept:
        cdef Command command
        memset(&command, 0, sizeof(command))
        command.op, command.room, command.number, command.ssrc, command.address = op, room, number, ssrc, address
        if not put(&self.engine.commands, &command):
            return False
        ring_bell(self.engine.wake_fd)
        return True

    cdef bint tell(self, int op, uint32_t number, uint32_t user, uint32_t ssrc, uint64_t address) except -1:
        cdef Room* room = self.room(number)
        return self.push(op, room, user, ssrc, address)

    cdef Room* room(self, uint32_t number) except NULL:
        if number >= _MAX_ROOMS or self.rooms[number] == NULL:
            raise KeyError(number)
        return self.rooms[number]

    def open(self, uint32_t number, int fd, double vanish_s) -> bool:
        """Watch a socket as the room of this number, which is free. The socket stays the caller's."""
        cdef Room* room
        if number >= _MAX_ROOMS or self.rooms[number] != NULL:
            raise ValueError(f"room {number} is not free")
        room = <Room*> malloc(sizeof(Room))
        if room == NULL:
            raise MemoryError
        open_room(room, fd, number, <int64_t> (vanish_s * 1000000), &self.engine.outgoing)
        if not self.push(OP_OPEN, room, 0, 0, 0):
            free(room)
            return False
        self.rooms[number] = room
        return True

    def close(self, uint32_t number) -> bool:
        """Let go of the room's socket; the CLOSED event says when."""
        return self.tell(OP_CLOSE, number, 0, 0, 0)

    def subscribe(self, uint32_t room, uint32_t number, uint64_t address) -> bool:
        """Copy packets to this address from its first sign of life on. ``address`` as ``key_of`` has it."""
        return self.tell(OP_SUBSCRIBE, room, number, 0, address)

    def unsubscribe(self, uint32_t room, uint32_t number) -> bool:
        """Copy no more."""
        return self.tell(OP_UNSUBSCRIBE, room, number, 0, 0)

    def allow(self, uint32_t room, uint32_t number, uint32_t ssrc, uint64_t address) -> bool:
        """Pass on what comes from this address with this SSRC."""
        return self.tell(OP_ALLOW, room, number, ssrc, address)

    def revoke(self, uint32_t room, uint32_t number) -> bool:
        """Pass it on no more."""
        return self.tell(OP_REVOKE, room, number, 0, 0)

    def take_events(self) -> list:
        """(what, room, number) of each event since the last call. The memory of a CLOSED room is freed here."""
        cdef uint64_t rung
        cdef Event event
        cdef list events = []
        posix.read(self.engine.event_fd, &rung, sizeof(rung))
        while take(&self.engine.events, &event):
            if event.what == ROOM_CLOSED:
                free(self.rooms[event.room])
                self.rooms[event.room] = NULL
            events.append((event.what, event.room, event.number))
        return events

    def counters(self, uint32_t room) -> tuple:
        """The counters of a room, in the order of ``Counters``, as they are now."""
        cdef Room* known = self.room(room)
        cdef const uint64_t* counted = <const uint64_t*> &known.counters
        cdef size_t i
        return tuple([counted[i] for i in range(sizeof(known.counters) // sizeof(uint64_t))])
