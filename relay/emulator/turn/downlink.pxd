# From peers to a client: ChannelData, or a Data indication if no channel is bound. What one turn brings leaves together.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from relay.emulator.turn.datagrams cimport set_address, store16
from relay.emulator.turn.path cimport (
    BATCH, BURST, DROP_NO_ALLOCATION, DROP_NOT_PERMITTED, DROP_OVERSIZE, DROP_PAUSED, DROP_REFUSED, HEAD_ROOM,
    RANDOM_BYTES, Allocation, Channel, Engine, Host, Leaving, drop,
)
from relay.emulator.turn.tables cimport channel_from, is_permitted
from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.posix cimport sockaddr_in
from relay.plane.compiled.leaves.stun cimport ATTRIBUTE_DATA, DATA_INDICATION, TRANSACTION_ID_BYTES

cdef enum:
    CHANNEL_HEADER_BYTES = 4
    # As relay.turn.server has it: the longest that fits into a Data indication with an IPv6 address.
    MAX_RELAYED_BYTES = 65507 - 20 - 24 - 4 - 3


# A relayed address is readable. What it has beyond a burst waits for the next turn.
cdef inline void on_relayed(Engine* e, uint32_t number) noexcept nogil:
    cdef Allocation* a = e.allocations[number]
    cdef uint32_t i
    cdef int got
    if a == NULL:
        return
    if e.taken + BURST > BATCH:
        flush(e)
    i = e.taken
    got = posix.recvmmsg(a.fd, &e.from_peers.messages[i], BURST, posix.MSG_DONTWAIT, NULL)
    e.carried = True
    e.more |= got == BURST
    e.taken += <uint32_t> got if got > 0 else 0
    while i < e.taken:
        e.from_peers.messages[i].msg_hdr.msg_namelen = sizeof(sockaddr_in)
        deliver(
            e, a, &e.from_peers.addresses[i], <uint8_t*> e.from_peers.vectors[i].iov_base,
            e.from_peers.messages[i].msg_len,
        )
        i += 1


cdef inline void deliver(
    Engine* e, Allocation* a, const sockaddr_in* peer, uint8_t* data, uint32_t size
) noexcept nogil:
    cdef Host* host = &e.hosts[a.host]
    cdef Channel* channel
    if host.paused:
        drop(host, DROP_PAUSED)
    elif a.expires_us <= e.now_us:
        drop(host, DROP_NO_ALLOCATION)
    elif not is_permitted(a, peer.sin_addr.s_addr, e.now_us):
        drop(host, DROP_NOT_PERMITTED)
    elif size > MAX_RELAYED_BYTES:
        drop(host, DROP_OVERSIZE)
    else:
        channel = channel_from(a, peer.sin_addr.s_addr, peer.sin_port, e.now_us)
        if channel != NULL:
            store16(data - 4, channel.number)
            store16(data - 2, size)
            add(e, a, data - CHANNEL_HEADER_BYTES, size + CHANNEL_HEADER_BYTES, size)
        else:
            write_indication(e, peer, data, size)
            add(e, a, data - HEAD_ROOM, HEAD_ROOM + ((size + 3) & ~<uint32_t> 3), size)


# Puts the head of a Data indication before the data (RFC 8656 section 11.3), and zeroes behind it.
cdef inline void write_indication(Engine* e, const sockaddr_in* peer, uint8_t* data, uint32_t size) noexcept nogil:
    cdef uint8_t* head = data - HEAD_ROOM
    cdef const uint8_t* ip = <const uint8_t*> &peer.sin_addr.s_addr
    cdef const uint8_t* port = <const uint8_t*> &peer.sin_port
    cdef uint8_t[16] before = [0, 0x17, 0, 0, 0x21, 0x12, 0xA4, 0x42, 0, 0x12, 0, 8, 0, 1, 0, 0]
    cdef uint8_t* address = head + 24
    memcpy(head, before, 8)
    store16(head + 2, HEAD_ROOM - 20 + ((size + 3) & ~<uint32_t> 3))
    take_random(e, head + 8)
    memcpy(head + 20, before + 8, 6)
    address[2], address[3] = port[0] ^ 0x21, port[1] ^ 0x12
    address[4], address[5], address[6], address[7] = ip[0] ^ 0x21, ip[1] ^ 0x12, ip[2] ^ 0xA4, ip[3] ^ 0x42
    store16(head + 32, ATTRIBUTE_DATA)
    store16(head + 34, size)
    memset(data + size, 0, -size & 3)


# A transaction identifier. The kernel is asked for many at once.
cdef inline void take_random(Engine* e, uint8_t* to) noexcept nogil:
    if e.random_left < TRANSACTION_ID_BYTES:
        posix.getrandom(e.random, RANDOM_BYTES, 0)
        e.random_left = RANDOM_BYTES
    e.random_left -= TRANSACTION_ID_BYTES
    memcpy(to, e.random + e.random_left, TRANSACTION_ID_BYTES)


# What is in a slot is to be sent to the client.
cdef inline void add(Engine* e, Allocation* a, uint8_t* data, uint32_t size, uint32_t payload_bytes) noexcept nogil:
    cdef Leaving* leaving = &e.to_clients
    cdef uint32_t place = leaving.count
    leaving.hosts[place], leaving.payload_bytes[place] = a.host, payload_bytes
    leaving.vectors[place].iov_base, leaving.vectors[place].iov_len = data, size
    set_address(&leaving.addresses[place], a.client_ip, a.client_port)
    leaving.count = place + 1


# Sends all that waits, one batch for each host. Then all slots are free.
cdef inline void flush(Engine* e) noexcept nogil:
    cdef Leaving* leaving = &e.to_clients
    cdef uint64_t left = (<uint64_t> 1 << (leaving.count - 1) << 1) - 1 if leaving.count else 0
    cdef uint32_t[BATCH] places
    cdef uint32_t i, host, count
    while left:
        i = lowest_bit(left)
        host, count = leaving.hosts[i], 0
        while i < leaving.count:
            if leaving.hosts[i] == host:
                leaving.messages[count].msg_hdr.msg_iov = &leaving.vectors[i]
                leaving.messages[count].msg_hdr.msg_name = &leaving.addresses[i]
                places[count] = i
                count += 1
                left &= ~(<uint64_t> 1 << i)
            i += 1
        send_batch(e, &e.hosts[host], places, count)
    e.taken = leaving.count = 0


cdef extern from *:
    """
    #define relay_lowest_bit(bits) ((uint32_t) __builtin_ctzll(bits))
    """
    uint32_t lowest_bit "relay_lowest_bit"(uint64_t bits) noexcept nogil


cdef inline void send_batch(Engine* e, Host* host, const uint32_t* places, uint32_t count) noexcept nogil:
    cdef uint32_t done = 0
    cdef int sent
    while done < count:
        sent = posix.sendmmsg(host.fd, &e.to_clients.messages[done], count - done, posix.MSG_DONTWAIT | posix.MSG_NOSIGNAL)
        if sent <= 0:
            # The socket is full, or there is no route to this client. The next one may be luckier.
            drop(host, DROP_REFUSED)
            done += 1
            continue
        for _ in range(sent):
            host.downlink_packets += 1
            host.downlink_bytes += e.to_clients.payload_bytes[places[done]]
            done += 1
