# One hoot as the fan-out thread has it: who listens, who may talk, and what became of each packet.
#
# A packet's life: on_datagram finds out who has sent it, judges it, and has forward() copy it to all who listen. The
# arrays of messages are made once. For a packet only the one iovec that they all point to changes, so that its copies
# cost one system call and no work of ours. Subscribers that have been heard stand first in the arrays, without gaps.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.stun cimport datagram_unit, load32
from relay.plane.compiled.leaves.uplink cimport is_no_room

cdef enum:
    # Both are the vendor's own: a hoot has up to 800 subscribers, and at most 12 talk at once.
    MAX_SUBSCRIBERS = 800
    MAX_TALKERS = 12
    # Places in the table of addresses. A power of two, and at most 40 % full.
    ADDRESS_SLOTS = 2048
    NOBODY = 0xFFFFFFFF
    # An RTP header and the tag of AES_CM_128_HMAC_SHA1_80.
    MIN_SRTP_BYTES = 22
    # What an Ethernet carries. A longer datagram would be sent on in fragments, 800 times.
    MAX_PACKET_BYTES = 1472
    # A voice packet has 10, 20 or more milliseconds. Four times as many as the shortest is a flood, not voice.
    MAX_PACKETS_PER_SECOND = 200
    # What arrives together after a stall of 2 s of 20 ms packets, or 1 s of 10 ms packets.
    MAX_BURST_PACKETS = 100
    # How long the thread waits for room in a full socket, once for a packet: other hoots wait with it.
    ROOM_WAIT_MS = 1

cdef struct Counters:
    uint64_t received           # datagrams, all of them
    uint64_t forwarded          # packets of talkers that were passed on
    uint64_t copies             # of these: what the kernel has taken
    uint64_t keepalives         # STUN and RTCP of members: signs of life, not passed on
    uint64_t strangers          # from an address that nobody has registered
    uint64_t no_floor           # from a subscriber who may not talk
    uint64_t wrong_ssrc         # from a talker, with another SSRC than the one that was allowed
    uint64_t malformed          # not SRTP, SRTCP or STUN, or too short
    uint64_t too_long
    uint64_t too_fast
    uint64_t copies_no_room     # copies that the full socket did not take
    uint64_t copies_unreachable # copies that the kernel refused: no route, a packet filter

cdef struct Subscriber:
    uint32_t number             # the user, as Python counts them
    uint64_t address            # see key_of
    int64_t heard_us            # the last sign of life; before the first: when it subscribed

cdef struct Talker:
    uint32_t number             # NOBODY: this place is free
    uint32_t ssrc
    uint64_t address
    uint32_t own                # where the talker listens, who never hears themself; NOBODY if nowhere
    int64_t credit_us           # of the rate: the time before which the burst is used up

cdef struct Room:
    int fd                      # Python's: it closes the socket once the thread has let go of it
    uint32_t number
    bint closing
    int64_t vanish_us           # a subscriber that gives no sign of life for this long is gone
    uint32_t count              # subscribers
    uint32_t live               # of these: heard, so that packets go to them
    Subscriber[MAX_SUBSCRIBERS] subscribers
    posix.sockaddr_in[MAX_SUBSCRIBERS] targets
    posix.mmsghdr[MAX_SUBSCRIBERS] messages
    uint16_t[ADDRESS_SLOTS] slots       # 1 + the place of the subscriber with this address; 0: free
    Talker[MAX_TALKERS] talkers
    Counters counters


# An IPv4 address and port in one number. Never 0, because Python refuses port 0.
cdef inline uint64_t key_of(const posix.sockaddr_in* address) noexcept nogil:
    return <uint64_t> address.sin_addr.s_addr << 16 | address.sin_port


cdef inline void open_room(Room* room, int fd, uint32_t number, int64_t vanish_us, posix.iovec* outgoing) noexcept nogil:
    cdef int i
    memset(room, 0, sizeof(Room))
    room.fd, room.number, room.vanish_us = fd, number, vanish_us
    for i in range(MAX_TALKERS):
        room.talkers[i].number = NOBODY
    for i in range(MAX_SUBSCRIBERS):
        room.targets[i].sin_family = posix.AF_INET
        room.messages[i].msg_hdr.msg_name = &room.targets[i]
        room.messages[i].msg_hdr.msg_namelen = sizeof(posix.sockaddr_in)
        room.messages[i].msg_hdr.msg_iov = outgoing
        room.messages[i].msg_hdr.msg_iovlen = 1


# Who is at an address

cdef inline uint32_t slot_of(uint64_t address) noexcept nogil:
    # Fibonacci hashing: the top 11 bits of the product.
    return <uint32_t> ((address * <uint64_t> 0x9E3779B97F4A7C15) >> 53)


cdef inline uint32_t subscriber_at(const Room* room, uint64_t address) noexcept nogil:
    cdef uint32_t slot = slot_of(address)
    while room.slots[slot]:
        if room.subscribers[room.slots[slot] - 1].address == address:
            return room.slots[slot] - 1
        slot = (slot + 1) & (ADDRESS_SLOTS - 1)
    return NOBODY


cdef inline Talker* talker_at(Room* room, uint64_t address) noexcept nogil:
    cdef int i
    for i in range(MAX_TALKERS):
        if room.talkers[i].number != NOBODY and room.talkers[i].address == address:
            return &room.talkers[i]
    return NULL


cdef inline uint32_t subscriber_of(const Room* room, uint32_t number) noexcept nogil:
    cdef uint32_t i
    for i in range(room.count):
        if room.subscribers[i].number == number:
            return i
    return NOBODY


cdef inline Talker* talker_of(Room* room, uint32_t number) noexcept nogil:
    cdef int i
    for i in range(MAX_TALKERS):
        if room.talkers[i].number == number:
            return &room.talkers[i]
    return NULL


# Changes, which commands and signs of life make. Each ends with settle(): a few microseconds.

# Finds again what depends on places: the table of addresses, and where talkers listen.
cdef inline void settle(Room* room) noexcept nogil:
    cdef uint32_t i, slot
    cdef int t
    memset(room.slots, 0, sizeof(room.slots))
    for i in range(room.count):
        slot = slot_of(room.subscribers[i].address)
        while room.slots[slot]:
            slot = (slot + 1) & (ADDRESS_SLOTS - 1)
        room.slots[slot] = <uint16_t> (i + 1)
    for t in range(MAX_TALKERS):
        room.talkers[t].own = NOBODY if room.talkers[t].number == NOBODY else subscriber_of(room, room.talkers[t].number)


cdef inline void swap(Room* room, uint32_t one, uint32_t other) noexcept nogil:
    cdef Subscriber subscriber = room.subscribers[one]
    cdef posix.sockaddr_in target = room.targets[one]
    room.subscribers[one], room.targets[one] = room.subscribers[other], room.targets[other]
    room.subscribers[other], room.targets[other] = subscriber, target


cdef inline void remove_subscriber(Room* room, uint32_t place) noexcept nogil:
    if place < room.live:
        room.live -= 1
        swap(room, place, room.live)
        place = room.live
    room.count -= 1
    swap(room, place, room.count)
    settle(room)


cdef inline void unsubscribe(Room* room, uint32_t number) noexcept nogil:
    cdef uint32_t place = subscriber_of(room, number)
    if place != NOBODY:
        remove_subscriber(room, place)


# Python allows no more than there is room for, and no address twice. A user who moves begins anew, unheard.
cdef inline void subscribe(Room* room, uint32_t number, uint64_t address, int64_t now_us) noexcept nogil:
    cdef uint32_t place
    unsubscribe(room, number)
    if room.count == MAX_SUBSCRIBERS:
        return
    place = room.count
    room.count += 1
    room.subscribers[place].number = number
    room.subscribers[place].address = address
    room.subscribers[place].heard_us = now_us
    room.targets[place].sin_addr.s_addr = <uint32_t> (address >> 16)
    room.targets[place].sin_port = <uint16_t> address
    settle(room)


cdef inline void revoke(Room* room, uint32_t number) noexcept nogil:
    cdef Talker* talker = talker_of(room, number)
    if talker != NULL:
        talker.number = NOBODY


cdef inline void allow(Room* room, uint32_t number, uint32_t ssrc, uint64_t address) noexcept nogil:
    cdef Talker* talker = talker_of(room, number)
    if talker == NULL:
        talker = talker_of(room, NOBODY)
    if talker == NULL:
        return
    talker.number, talker.ssrc, talker.address = number, ssrc, address
    talker.credit_us = 0
    talker.own = subscriber_of(room, number)


# 1. A datagram comes: who is it, and may it pass?

cdef inline bint is_rtcp(const uint8_t* data) noexcept nogil:
    # RFC 5761 section 4: packet types 192 to 223.
    return data[1] & 0xE0 == 0xC0


# RFC 7983: the first byte tells SRTP from STUN.
cdef inline bint is_srtp(const uint8_t* data, size_t size) noexcept nogil:
    return size >= MIN_SRTP_BYTES and data[0] & 0xC0 == 0x80


cdef inline bint is_stun(const uint8_t* data, size_t size) noexcept nogil:
    return size > 0 and data[0] < 4 and datagram_unit(data, size) > 0


# A virtual clock: each packet is due one interval after the last, and may come early by a burst.
cdef inline bint take_credit(Talker* talker, int64_t now_us) noexcept nogil:
    cdef int64_t interval_us = 1000000 // MAX_PACKETS_PER_SECOND
    cdef int64_t due_us = talker.credit_us if talker.credit_us > now_us else now_us
    if due_us - now_us >= MAX_BURST_PACKETS * interval_us:
        return False
    talker.credit_us = due_us + interval_us
    return True


# From the first sign of life on, packets go to a subscriber: nobody is flooded who did not ask from this very address.
cdef inline void note_life(Room* room, uint32_t place, int64_t now_us) noexcept nogil:
    room.subscribers[place].heard_us = now_us
    if place >= room.live:
        swap(room, place, room.live)
        room.live += 1
        settle(room)


cdef inline void on_datagram(
    Room* room, const posix.sockaddr_in* sender, uint8_t* data, size_t size, bint cut, posix.iovec* outgoing, int64_t now_us
) noexcept nogil:
    cdef uint64_t address = key_of(sender)
    cdef Talker* talker = talker_at(room, address)
    cdef uint32_t place = subscriber_at(room, address)
    cdef bint srtp = is_srtp(data, size)
    room.counters.received += 1
    if talker == NULL and place == NOBODY:
        room.counters.strangers += 1
    elif cut or size > MAX_PACKET_BYTES:
        room.counters.too_long += 1
    elif not srtp and not is_stun(data, size):
        room.counters.malformed += 1
    else:
        if place != NOBODY:
            note_life(room, place, now_us)
        if not srtp or is_rtcp(data):
            room.counters.keepalives += 1
        elif talker == NULL:
            room.counters.no_floor += 1
        elif load32(data + 8) != talker.ssrc:
            room.counters.wrong_ssrc += 1
        elif not take_credit(talker, now_us):
            room.counters.too_fast += 1
        else:
            outgoing.iov_base, outgoing.iov_len = data, size
            forward(room, talker.own)


# 2. Its copies go

cdef inline bint wait_for_room(int fd) noexcept nogil:
    cdef posix.pollfd watched
    watched.fd, watched.events, watched.revents = fd, posix.POLLOUT, 0
    return posix.poll(&watched, 1, ROOM_WAIT_MS) > 0


cdef inline void send_to(Room* room, uint32_t first, uint32_t end, bint* waited) noexcept nogil:
    cdef int sent
    while first < end:
        sent = posix.sendmmsg(room.fd, &room.messages[first], end - first, posix.MSG_DONTWAIT | posix.MSG_NOSIGNAL)
        if sent > 0:
            room.counters.copies += <uint64_t> sent
            first += <uint32_t> sent
        elif is_no_room(posix.errno):
            if waited[0] or not wait_for_room(room.fd):
                room.counters.copies_no_room += end - first
                return
            waited[0] = True
        elif posix.errno != posix.EINTR:
            room.counters.copies_unreachable += 1
            first += 1


# To all who have been heard, except the talker.
cdef inline void forward(Room* room, uint32_t own) noexcept nogil:
    cdef bint waited = False
    room.counters.forwarded += 1
    if own >= room.live:
        send_to(room, 0, room.live, &waited)
    else:
        send_to(room, 0, own, &waited)
        send_to(room, own + 1, room.live, &waited)
