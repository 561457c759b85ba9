# What Python has decided, in its order, through a list that Python pushes onto without a lock and the thread takes whole.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from loadtest.engine.client cimport add_peer, close_client, open_client
from loadtest.engine.ending cimport free_client, free_stream
from loadtest.engine.engine cimport (
    BIND, CLOSE, OPEN, SILENCE, STOP, SWAP, TALK, Client, Command, Engine, Snapshot, Stream,
)
from loadtest.engine.heap cimport set_due
from loadtest.engine.kernel cimport take_all, thread_us
from loadtest.engine.streams cimport begin_stream
from loadtest.engine.windows cimport Window
from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.live cimport free


cdef inline void wake(int event_fd) noexcept nogil:
    cdef uint64_t one = 1
    posix.write(event_fd, &one, sizeof(one))


cdef inline void drain(int event_fd) noexcept nogil:
    cdef uint64_t count
    posix.read(event_fd, &count, sizeof(count))


cdef inline void begin_window(Window* window) noexcept nogil:
    memset(window, 0, sizeof(Window))
    window.begun_us = posix.monotonic_us()
    window.cpu_us = thread_us()


# Copies the totals of this many streams that go on, from where the last window left off.
cdef inline void take_snapshots(Engine* e, uint32_t limit) noexcept nogil:
    cdef Snapshot* snapshot
    cdef Stream* s
    e.snapshot_count = 0
    for _ in range(e.max_streams):
        if e.snapshot_count == limit:
            return
        s = e.streams[e.next_snapshot]
        e.next_snapshot = (e.next_snapshot + 1) % e.max_streams
        if s != NULL:
            snapshot = &e.snapshots[e.snapshot_count]
            snapshot.number, snapshot.totals, snapshot.jitter_us = s.number, s.totals, s.jitter_16us >> 4
            e.snapshot_count += 1


# The window that was counted in is Python's until the next swap.
cdef inline void swap(Engine* e, uint32_t snapshots) noexcept nogil:
    take_snapshots(e, snapshots)
    e.window, e.retired = e.retired, e.window
    begin_window(e.window)
    e.retired.ended_us = e.window.begun_us
    e.retired.cpu_us = e.window.cpu_us - e.retired.cpu_us
    wake(e.swapped_fd)


cdef inline Command* in_order(Command* command) noexcept nogil:
    cdef Command* first = NULL
    cdef Command* after
    while command != NULL:
        after = command.next
        command.next = first
        first, command = command, after
    return first


# What a command owns and was not carried out.
cdef inline void free_command(Command* command) noexcept nogil:
    if command.client != NULL:
        free_client(command.client)
    if command.stream != NULL:
        free_stream(command.stream)
    free(command)


# Clients and streams may have ended meanwhile, of which Python hears.
cdef inline void carry_out(Engine* e, Command* command) noexcept nogil:
    cdef Client* c = e.clients[command.number] if command.number < e.max_clients else NULL
    cdef Stream* s = e.streams[command.number] if command.number < e.max_streams else NULL
    if command.kind == OPEN:
        c, command.client = command.client, NULL
        open_client(e, c)
    elif command.kind == TALK:
        s, command.stream = command.stream, NULL
        begin_stream(e, s)
    elif command.kind == CLOSE and c != NULL:
        close_client(e, c)
    elif command.kind == BIND and c != NULL:
        add_peer(e, c, &command.address)
    elif command.kind == SILENCE and s != NULL:
        s.stopping = True
        set_due(&e.due_streams, s.number, e.now_us)
    elif command.kind == SWAP:
        swap(e, command.limit)
    elif command.kind == STOP:
        e.stopping = True


cdef inline void on_commands(Engine* e) noexcept nogil:
    cdef Command* command = in_order(<Command*> take_all(<void**> &e.commands))
    cdef Command* after
    while command != NULL:
        after = command.next
        carry_out(e, command)
        free_command(command)
        command = after


# At the end, when nothing is carried out any longer.
cdef inline void drop_commands(Engine* e) noexcept nogil:
    cdef Command* command = <Command*> take_all(<void**> &e.commands)
    cdef Command* after
    while command != NULL:
        after = command.next
        free_command(command)
        command = after
