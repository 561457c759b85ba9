# Who may send what to whom: clients, permissions and channels. An entry whose time is over does not exist for a lookup.
#
# An allocation has a few peers, seldom hundreds, so they stand in a row and are looked through; the one that was found
# last is tried first. The worst case, 1,024 peers, takes about half of the time that the kernel takes to send a packet.

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from relay.emulator.turn.path cimport (
    MAX_CHANNELS, MAX_PERMISSIONS, Allocation, Channel, Clients, Entry, Permission,
)
from relay.plane.compiled.leaves.live cimport calloc, free, realloc

cdef enum:
    FIRST_CLIENTS = 256
    FIRST_PEERS = 2


# Clients

cdef inline uint64_t client_key(uint32_t host, uint32_t ip, uint16_t port) noexcept nogil:
    return <uint64_t> host << 48 | <uint64_t> ip << 16 | port


# The finalizer of SplitMix64.
cdef inline uint64_t place_of(const Clients* clients, uint64_t key) noexcept nogil:
    cdef uint64_t z = key ^ clients.seed
    z = (z ^ z >> 30) * <uint64_t> 0xBF58476D1CE4E5B9
    z = (z ^ z >> 27) * <uint64_t> 0x94D049BB133111EB
    return (z ^ z >> 31) & clients.mask


cdef inline int open_clients(Clients* clients, uint64_t seed) noexcept nogil:
    clients.entries = <Entry*> calloc(FIRST_CLIENTS, sizeof(Entry))
    clients.mask = FIRST_CLIENTS - 1
    clients.count = 0
    clients.seed = seed
    return 0 if clients.entries != NULL else -1


# The entry of this key, or the free one where it belongs.
cdef inline Entry* entry_of(const Clients* clients, uint64_t key) noexcept nogil:
    cdef uint64_t place = place_of(clients, key)
    while clients.entries[place].allocation != NULL and clients.entries[place].key != key:
        place = (place + 1) & clients.mask
    return &clients.entries[place]


cdef inline Allocation* find_client(const Clients* clients, uint32_t host, uint32_t ip, uint16_t port) noexcept nogil:
    return entry_of(clients, client_key(host, ip, port)).allocation


cdef inline bint grow_clients(Clients* clients) noexcept nogil:
    cdef Clients larger = clients[0]
    cdef uint64_t i
    larger.mask = clients.mask * 2 + 1
    larger.entries = <Entry*> calloc(larger.mask + 1, sizeof(Entry))
    if larger.entries == NULL:
        return False
    for i in range(clients.mask + 1):
        if clients.entries[i].allocation != NULL:
            entry_of(&larger, clients.entries[i].key)[0] = clients.entries[i]
    free(clients.entries)
    clients[0] = larger
    return True


# False without memory. An earlier allocation of this client is no longer found.
cdef inline bint add_client(Clients* clients, Allocation* allocation) noexcept nogil:
    cdef uint64_t key = client_key(allocation.host, allocation.client_ip, allocation.client_port)
    cdef Entry* entry
    if clients.count * 2 > clients.mask and not grow_clients(clients):
        return False
    entry = entry_of(clients, key)
    clients.count += entry.allocation == NULL
    entry.key, entry.allocation = key, allocation
    return True


# Only if the client has no other allocation by now. Entries that were pushed aside by this one move up.
cdef inline void drop_client(Clients* clients, Allocation* allocation) noexcept nogil:
    cdef uint64_t key = client_key(allocation.host, allocation.client_ip, allocation.client_port)
    cdef Entry* entry = entry_of(clients, key)
    cdef uint64_t hole, place
    if entry.allocation != allocation:
        return
    hole = place = entry - clients.entries
    clients.count -= 1
    while True:
        place = (place + 1) & clients.mask
        if clients.entries[place].allocation == NULL:
            break
        if ((place - place_of(clients, clients.entries[place].key)) & clients.mask) >= ((place - hole) & clients.mask):
            clients.entries[hole] = clients.entries[place]
            hole = place
    clients.entries[hole].allocation = NULL


# Permissions

cdef inline bint is_permitted(Allocation* a, uint32_t ip, int64_t now_us) noexcept nogil:
    cdef uint32_t i
    if a.last_permission < a.permission_count and a.permissions[a.last_permission].ip == ip:
        return a.permissions[a.last_permission].expires_us > now_us
    for i in range(a.permission_count):
        if a.permissions[i].ip == ip:
            a.last_permission = <uint16_t> i
            return a.permissions[i].expires_us > now_us
    return False


# False without memory, or if there are too many.
cdef inline bint permit(Allocation* a, uint32_t ip, int64_t expires_us, int64_t now_us) noexcept nogil:
    cdef Permission* larger
    cdef uint32_t i, place = a.permission_count
    for i in range(a.permission_count):
        if a.permissions[i].ip == ip:
            place = i
            break
        if a.permissions[i].expires_us <= now_us:
            place = i
    if place == MAX_PERMISSIONS:
        return False
    if place == a.permission_room:
        larger = <Permission*> realloc(a.permissions, (a.permission_room * 2 + FIRST_PEERS) * sizeof(Permission))
        if larger == NULL:
            return False
        a.permissions, a.permission_room = larger, <uint16_t> (a.permission_room * 2 + FIRST_PEERS)
    a.permission_count += place == a.permission_count
    a.permissions[place].ip, a.permissions[place].expires_us = ip, expires_us
    return True


# Channels

# The channel of a number, or NULL.
cdef inline Channel* channel_to(Allocation* a, uint16_t number, int64_t now_us) noexcept nogil:
    cdef uint32_t i
    if a.last_channel >= a.channel_count or a.channels[a.last_channel].number != number:
        for i in range(a.channel_count):
            if a.channels[i].number == number:
                a.last_channel = <uint16_t> i
                break
        else:
            return NULL
    return &a.channels[a.last_channel] if a.channels[a.last_channel].expires_us > now_us else NULL


# The channel of a peer, or NULL.
cdef inline Channel* channel_from(Allocation* a, uint32_t ip, uint16_t port, int64_t now_us) noexcept nogil:
    cdef uint32_t i = a.last_channel
    if i >= a.channel_count or a.channels[i].ip != ip or a.channels[i].port != port:
        for i in range(a.channel_count):
            if a.channels[i].ip == ip and a.channels[i].port == port:
                a.last_channel = <uint16_t> i
                break
        else:
            return NULL
    return &a.channels[a.last_channel] if a.channels[a.last_channel].expires_us > now_us else NULL


cdef inline void forget_channel(Allocation* a, uint32_t place) noexcept nogil:
    a.channel_count -= 1
    a.channels[place] = a.channels[a.channel_count]


# Binds or renews: neither number nor peer has another channel afterwards. False without memory, or if there are too many.
cdef inline bint bind(
    Allocation* a, uint16_t number, uint32_t ip, uint16_t port, int64_t expires_us, int64_t now_us
) noexcept nogil:
    cdef Channel* larger
    cdef uint32_t i = 0
    while i < a.channel_count:
        if a.channels[i].number == number or (a.channels[i].ip == ip and a.channels[i].port == port):
            forget_channel(a, i)
        elif a.channel_count == MAX_CHANNELS and a.channels[i].expires_us <= now_us:
            forget_channel(a, i)
        else:
            i += 1
    if a.channel_count == MAX_CHANNELS:
        return False
    if a.channel_count == a.channel_room:
        larger = <Channel*> realloc(a.channels, (a.channel_room * 2 + FIRST_PEERS) * sizeof(Channel))
        if larger == NULL:
            return False
        a.channels, a.channel_room = larger, <uint16_t> (a.channel_room * 2 + FIRST_PEERS)
    a.channels[a.channel_count] = Channel(expires_us=expires_us, ip=ip, port=port, number=number)
    a.channel_count += 1
    return True
