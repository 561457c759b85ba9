# What Python has decided. Commands come through a list that Python pushes onto without a lock and this thread takes whole, so
# that they are carried out in their order: an answer leaves after what it grants is in place.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from relay.emulator.turn.datagrams cimport sendto, set_address
from relay.emulator.turn.path cimport (
    BIND, CLOSE_HOST, DROP_NO_ALLOCATION, DROP_REFUSED, INSTALL, MARK, MAX_ALLOCATIONS, ON_HOST, ON_RELAYED, OPEN_HOST,
    PERMIT, REFRESH, REMOVE, STOP, TO_CLIENT, TO_PEER, Allocation, Command, Engine, Host, drop,
)
from relay.emulator.turn.tables cimport add_client, bind, drop_client, permit
from relay.emulator.turn.uplink cimport send_to_peer
from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.posix cimport sockaddr_in
from relay.plane.compiled.leaves.live cimport LIVE_SOCKETS, calloc, count_live, free, realloc

cdef enum:
    FIRST_ALLOCATIONS = 256

cdef extern from *:
    """
    #define relay_take_all(list) __atomic_exchange_n(list, NULL, __ATOMIC_ACQUIRE)
    /* True if the list was empty. */
    static inline int relay_push(void **list, void *node, void **next) {
        void *head = __atomic_load_n(list, __ATOMIC_RELAXED);
        do *next = head;
        while (!__atomic_compare_exchange_n(list, &head, node, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED));
        return head == NULL;
    }
    #define relay_publish(value, now) __atomic_store_n(value, now, __ATOMIC_RELEASE)
    """
    Command* take_all "relay_take_all"(Command** list) noexcept nogil
    bint push "relay_push"(void** list, void* node, void** next) noexcept nogil
    void publish "relay_publish"(int64_t* value, int64_t now) noexcept nogil


cdef inline int watch(Engine* e, int fd, uint64_t kind, uint32_t number) noexcept nogil:
    cdef posix.epoll_event event
    event.events = posix.EPOLLIN
    event.data.u64 = kind << 56 | number
    return posix.epoll_ctl(e.epoll, posix.EPOLL_CTL_ADD, fd, &event)


cdef inline void wake(int event_fd) noexcept nogil:
    cdef uint64_t one = 1
    posix.write(event_fd, &one, sizeof(one))


cdef inline void drain(int event_fd) noexcept nogil:
    cdef uint64_t count
    posix.read(event_fd, &count, sizeof(count))


cdef inline void close_socket(int fd) noexcept nogil:
    posix.close(fd)
    count_live(LIVE_SOCKETS, -1)


cdef inline void on_commands(Engine* e) noexcept nogil:
    cdef Command* command = take_all(&e.commands)
    cdef Command* first = NULL
    cdef Command* after
    while command != NULL:
        after = command.next
        command.next = first
        first, command = command, after
    while first != NULL:
        after = first.next
        carry_out(e, first)
        free(first)
        first = after


cdef inline void carry_out(Engine* e, Command* command) noexcept nogil:
    cdef Allocation* a = e.allocations[command.allocation] if command.allocation < e.allocation_room else NULL
    if command.kind == TO_CLIENT:
        answer(e, command)
    elif command.kind == INSTALL:
        install(e, command)
    elif command.kind == OPEN_HOST:
        e.hosts[command.host].fd = command.fd
        watch(e, command.fd, ON_HOST, command.host)
    elif command.kind == CLOSE_HOST:
        close_host(&e.hosts[command.host])
    elif command.kind == MARK:
        publish(&e.mark, command.mark)
        wake(e.event_fd)
    elif command.kind == STOP:
        e.stopping = True
    elif a == NULL:
        pass                    # there was no memory for it
    elif command.kind == PERMIT:
        permit(a, command.ip, command.expires_us, e.now_us)
    elif command.kind == BIND:
        bind(a, command.channel, command.ip, command.port, command.expires_us, e.now_us)
    elif command.kind == REFRESH:
        a.expires_us = command.expires_us
    elif command.kind == REMOVE:
        remove(e, a)
    elif command.kind == TO_PEER:
        send_to_peer(&e.hosts[a.host], a, command.ip, command.port, <uint8_t*> (command + 1), command.size)


cdef inline void answer(Engine* e, Command* command) noexcept nogil:
    cdef Host* host = &e.hosts[command.host]
    cdef sockaddr_in client
    set_address(&client, command.ip, command.port)
    if host.fd >= 0 and sendto(
        host.fd, command + 1, command.size, posix.MSG_DONTWAIT | posix.MSG_NOSIGNAL, <posix.sockaddr*> &client,
        sizeof(sockaddr_in)
    ) < 0:
        drop(host, DROP_REFUSED)


cdef inline void close_host(Host* host) noexcept nogil:
    if host.fd >= 0:
        close_socket(host.fd)
    host.fd = -1


# The relayed address is the allocation's from here. Without memory there is no allocation, and its data is dropped.
cdef inline void install(Engine* e, Command* command) noexcept nogil:
    cdef Allocation* a = new_allocation(e, command)
    if a == NULL:
        close_socket(command.fd)
        drop(&e.hosts[command.host], DROP_NO_ALLOCATION)
        return
    e.allocations[a.number] = a
    e.hosts[a.host].allocations += 1
    if watch(e, a.fd, ON_RELAYED, a.number) < 0 or not add_client(&e.clients, a):
        drop(&e.hosts[a.host], DROP_NO_ALLOCATION)
        remove(e, a)


cdef inline Allocation* new_allocation(Engine* e, const Command* command) noexcept nogil:
    cdef Allocation* a
    if command.allocation >= e.allocation_room and not grow_allocations(e, command.allocation):
        return NULL
    a = <Allocation*> calloc(1, sizeof(Allocation))
    if a != NULL:
        a.number, a.host, a.fd, a.expires_us = command.allocation, command.host, command.fd, command.expires_us
        a.client_ip, a.client_port = command.ip, command.port
    return a


cdef inline bint grow_allocations(Engine* e, uint32_t number) noexcept nogil:
    cdef uint32_t i, room = e.allocation_room if e.allocation_room else FIRST_ALLOCATIONS
    cdef Allocation** larger
    while room <= number:
        room *= 2
    if room > MAX_ALLOCATIONS:
        return False
    larger = <Allocation**> realloc(e.allocations, room * sizeof(Allocation*))
    if larger == NULL:
        return False
    for i in range(e.allocation_room, room):
        larger[i] = NULL
    e.allocations, e.allocation_room = larger, room
    return True


cdef inline void remove(Engine* e, Allocation* a) noexcept nogil:
    e.allocations[a.number] = NULL
    e.hosts[a.host].allocations -= 1
    drop_client(&e.clients, a)
    close_socket(a.fd)
    free(a.permissions)
    free(a.channels)
    free(a)
