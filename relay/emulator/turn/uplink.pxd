# From a client to its peers: ChannelData and Send indications go on, requests go to Python.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from relay.emulator.turn.datagrams cimport sendto, set_address
from relay.emulator.turn.path cimport (
    BATCH, DROP_MALFORMED, DROP_NO_ALLOCATION, DROP_NO_CHANNEL, DROP_NOT_PERMITTED, DROP_OVERSIZE, DROP_PAUSED,
    DROP_REFUSED, DROP_REQUEST_FLOOD, MAX_REQUEST_BYTES, MAX_WAITING, SOURCES, Allocation, Channel, Engine, Host, drop,
)
from relay.emulator.turn.tables cimport channel_to, client_key, find_client, is_permitted, place_of
from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.posix cimport sockaddr_in
from relay.plane.compiled.leaves.ring cimport put, relay_load
from relay.plane.compiled.leaves.stun cimport (
    ATTRIBUTE_DATA, CLASS_BITS, STUN_HEADER_BYTES, datagram_unit, load16, load32,
)

cdef enum:
    SEND_INDICATION = 0x0016
    INDICATION_BITS = 0x0010
    XOR_PEER_ADDRESS = 0x0012
    FINGERPRINT = 0x8028
    FINGERPRINT_XOR = 0x5354554E
    FIRST_OPTIONAL = 0x8000     # from here on an attribute that is not understood is ignored
    ADDRESS_ERROR_CODE = 0x8001
    IPV4_FAMILY = 1
    IPV4_ADDRESS_BYTES = 8
    IPV6_FAMILY = 2
    IPV6_ADDRESS_BYTES = 20

# What the attributes of a Send indication are.
cdef enum Judgement:
    SEND_BROKEN
    SEND_PLAIN
    SEND_ODD                    # the state machine reads it

cdef struct Send:
    const uint8_t* peer
    const uint8_t* data
    uint32_t peer_bytes
    uint32_t data_bytes


# A host's socket is readable. What it has beyond one batch waits for the next turn.
cdef inline void on_host(Engine* e, uint32_t number) noexcept nogil:
    cdef int i, got
    cdef int fd = e.hosts[number].fd
    if fd < 0:
        return
    got = posix.recvmmsg(fd, e.from_clients.messages, BATCH, posix.MSG_DONTWAIT, NULL)
    e.carried = True
    e.more |= got == BATCH
    for i in range(got):
        e.from_clients.messages[i].msg_hdr.msg_namelen = sizeof(sockaddr_in)
        on_datagram(
            e, number, &e.from_clients.addresses[i], <uint8_t*> e.from_clients.vectors[i].iov_base,
            e.from_clients.messages[i].msg_len,
        )


cdef inline void on_datagram(
    Engine* e, uint32_t number, const sockaddr_in* client, const uint8_t* data, uint32_t size
) noexcept nogil:
    cdef Host* host = &e.hosts[number]
    if host.paused:
        drop(host, DROP_PAUSED)
    elif size >= 4 and data[0] & 0xC0 == 0x40:
        on_channel_data(e, number, client, data, size)
    elif size < STUN_HEADER_BYTES or data[0] >= 0x40 or not datagram_unit(data, size):
        drop(host, DROP_MALFORMED)
    elif load16(data) & CLASS_BITS == 0:
        ask(e, number, client, data, size)
    elif load16(data) == SEND_INDICATION:
        on_send(e, number, client, data, size)
    else:
        drop(host, DROP_MALFORMED)


# The allocation of a client while it lives, or NULL.
cdef inline Allocation* live(Engine* e, uint32_t number, const sockaddr_in* client) noexcept nogil:
    cdef Allocation* a = find_client(&e.clients, number, client.sin_addr.s_addr, client.sin_port)
    return a if a != NULL and a.expires_us > e.now_us else NULL


# RFC 8656 section 12.6.
cdef inline void on_channel_data(
    Engine* e, uint32_t number, const sockaddr_in* client, const uint8_t* data, uint32_t size
) noexcept nogil:
    cdef Host* host = &e.hosts[number]
    cdef Allocation* a = live(e, number, client)
    cdef Channel* channel
    if a == NULL:
        drop(host, DROP_NO_ALLOCATION)
        return
    channel = channel_to(a, load16(data), e.now_us)
    if channel == NULL or not is_permitted(a, channel.ip, e.now_us):
        drop(host, DROP_NO_CHANNEL)
    elif 4 + <uint32_t> load16(data + 2) > size:
        drop(host, DROP_MALFORMED)
    else:
        send_to_peer(host, a, channel.ip, channel.port, data + 4, load16(data + 2))


cdef inline void send_to_peer(
    Host* host, Allocation* a, uint32_t ip, uint16_t port, const uint8_t* data, uint32_t size
) noexcept nogil:
    cdef sockaddr_in peer
    set_address(&peer, ip, port)
    if sendto(
        a.fd, data, size, posix.MSG_DONTWAIT | posix.MSG_NOSIGNAL, <posix.sockaddr*> &peer, sizeof(sockaddr_in)
    ) < 0:
        drop(host, DROP_REFUSED)
    else:
        host.uplink_packets += 1
        host.uplink_bytes += size


# RFC 8656 section 11.2.
cdef inline void on_send(
    Engine* e, uint32_t number, const sockaddr_in* client, const uint8_t* data, uint32_t size
) noexcept nogil:
    cdef Host* host = &e.hosts[number]
    cdef Send send
    cdef Judgement judgement = read_send(e, data, size, &send)
    cdef Allocation* a
    cdef uint32_t ip
    if judgement == SEND_ODD or (host.asks_sends and judgement == SEND_PLAIN):
        ask(e, number, client, data, size)
        return
    if judgement == SEND_BROKEN:
        drop(host, DROP_MALFORMED)
        return
    a = live(e, number, client)
    if a == NULL:
        drop(host, DROP_NO_ALLOCATION)
        return
    ip = unmask32(send.peer + 4)
    if is_permitted(a, ip, e.now_us):
        send_to_peer(host, a, ip, unmask16(send.peer + 2), send.data, send.data_bytes)
    else:
        drop(host, DROP_NOT_PERMITTED)


# Address and port of an XOR-PEER-ADDRESS in network order, and back: the cookie is 0x2112A442.
cdef inline uint32_t unmask32(const uint8_t* masked) noexcept nogil:
    cdef uint8_t[4] bytes
    cdef uint32_t ip
    bytes[0], bytes[1], bytes[2], bytes[3] = masked[0] ^ 0x21, masked[1] ^ 0x12, masked[2] ^ 0xA4, masked[3] ^ 0x42
    memcpy(&ip, bytes, 4)
    return ip


cdef inline uint16_t unmask16(const uint8_t* masked) noexcept nogil:
    cdef uint8_t[2] bytes
    cdef uint16_t port
    bytes[0], bytes[1] = masked[0] ^ 0x21, masked[1] ^ 0x12
    memcpy(&port, bytes, 2)
    return port


# Reads what nearly all clients send: a peer, data, and attributes that a server may ignore.
cdef inline Judgement read_send(Engine* e, const uint8_t* data, uint32_t size, Send* send) noexcept nogil:
    cdef uint32_t offset = STUN_HEADER_BYTES, kind, length, after
    send.peer = send.data = NULL
    send.peer_bytes = send.data_bytes = 0
    while offset < size:
        if offset + 4 > size:
            return SEND_BROKEN
        kind, length = load16(data + offset), load16(data + offset + 2)
        after = offset + 4 + ((length + 3) & ~<uint32_t> 3)
        if after > size:
            return SEND_BROKEN
        if kind == XOR_PEER_ADDRESS:
            if send.peer == NULL:
                send.peer, send.peer_bytes = data + offset + 4, length
        elif kind == ATTRIBUTE_DATA:
            if send.data == NULL:
                send.data, send.data_bytes = data + offset + 4, length
        elif kind == FINGERPRINT:
            if length != 4 or after != size or fingerprint_of(e, data, offset) != load32(data + offset + 4):
                return SEND_BROKEN
        elif kind <= ADDRESS_ERROR_CODE:
            return SEND_ODD
        offset = after
    return judge_peer(send)


cdef inline Judgement judge_peer(const Send* send) noexcept nogil:
    if send.peer == NULL or send.data == NULL or send.peer_bytes < 4:
        return SEND_BROKEN
    if send.peer[1] == IPV6_FAMILY and send.peer_bytes == IPV6_ADDRESS_BYTES:
        return SEND_ODD         # it may be an IPv4 address within
    return SEND_PLAIN if send.peer[1] == IPV4_FAMILY and send.peer_bytes == IPV4_ADDRESS_BYTES else SEND_BROKEN


# RFC 8489 section 14.7: the CRC-32 of what stands before the attribute, XORed.
cdef inline uint32_t fingerprint_of(const Engine* e, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef uint32_t crc = ~<uint32_t> 0
    cdef uint32_t i
    for i in range(size):
        crc = e.crc_table[(crc ^ data[i]) & 0xFF] ^ crc >> 8
    return ~crc ^ <uint32_t> FINGERPRINT_XOR


cdef inline void fill_crc_table(Engine* e) noexcept nogil:
    cdef uint32_t i, crc
    for i in range(256):
        crc = i
        for _ in range(8):
            crc = crc >> 1 ^ (<uint32_t> 0xEDB88320 if crc & 1 else 0)
        e.crc_table[i] = crc


# Hands a message to Python, unless too many wait: of this source, or of all.
cdef inline void ask(
    Engine* e, uint32_t number, const sockaddr_in* client, const uint8_t* data, uint32_t size
) noexcept nogil:
    cdef Host* host = &e.hosts[number]
    cdef uint64_t source = place_of(&e.clients, client_key(number, client.sin_addr.s_addr, client.sin_port)) % SOURCES
    if size > MAX_REQUEST_BYTES:
        drop(host, DROP_OVERSIZE)
        return
    if relay_load(&e.requests.head) == e.requests.tail:
        memset(e.asked_by, 0, SOURCES)
    if e.asked_by[source] == MAX_WAITING:
        drop(host, DROP_REQUEST_FLOOD)
        return
    e.request.host, e.request.ip, e.request.port = number, client.sin_addr.s_addr, client.sin_port
    e.request.size = <uint16_t> size
    memcpy(e.request.data, data, size)
    if put(&e.requests, &e.request):
        e.asked_by[source] += 1
        e.asked = True
    else:
        drop(host, DROP_REQUEST_FLOOD)
