# Counts each packet, meters it, copies it for a tap, and notes how long it was in the relay.

from libc.stdint cimport int64_t, uint8_t, uint32_t

from relay.plane.compiled.engine cimport DROPS, Connection, Counters, Engine
from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.carriage cimport CARRIER_SESSION
from relay.plane.compiled.leaves.histogram cimport record_many_us
from relay.plane.compiled.leaves.live cimport calloc
from relay.plane.compiled.leaves.meter cimport Meter, meter_packet
from relay.plane.compiled.leaves.schedule cimport TRAFFICS
from relay.plane.compiled.leaves.stun cimport datagram_unit
from relay.plane.compiled.leaves.tap cimport TAP_LOCAL, TAP_UPLINK, Tap, TapKind, put_tapped


cdef inline void count_up(Engine* e, Connection* c, const uint8_t* unit, uint32_t size) noexcept nogil:
    if c.tap != NULL:
        copy_datagram(c, TAP_UPLINK, unit, size)
    c.counters.uplink_packets += 1
    c.counters.uplink_bytes += size
    e.sent_up += 1


# For packets that do not go through ``send_up``. In a session only media counts, and ``send_up`` sees nothing else of a
# session, so it need not ask.
cdef inline void count_sent(Engine* e, Connection* c, const uint8_t* unit, uint32_t size) noexcept nogil:
    if c.carrier != CARRIER_SESSION or unit[0] >= 0x40:
        count_up(e, c, unit, size)
    elif c.tap != NULL:
        copy_datagram(c, TAP_UPLINK, unit, size)


# Copies a datagram to the flow's tap. The flow's own address goes before the first datagram, and before the first one
# from a fresh port.
cdef inline void copy_datagram(Connection* c, TapKind kind, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef Tap* tap = c.tap
    cdef posix.sockaddr_storage local
    cdef posix.socklen_t length = sizeof(local)
    cdef int64_t now = posix.monotonic_us()
    if not tap.placed and posix.getsockname(c.udp, <posix.sockaddr*> &local, &length) == 0:
        tap.placed = put_tapped(tap, TAP_LOCAL, now, &local, length)
    if not tap.placed or not put_tapped(tap, kind, now, data, size):
        tap.missed += 1


# Meters an RTP packet. The first one of a flow makes its meter; without memory the flow has none.
cdef inline void meter(Engine* e, Meter** kept, const uint8_t* packet, uint32_t size) noexcept nogil:
    if not size or packet[0] >> 6 != 2:
        return
    if kept[0] == NULL:
        kept[0] = <Meter*> calloc(1, sizeof(Meter))
        if kept[0] == NULL:
            return
    meter_packet(kept[0], e.now_us, packet, size, e.bounds.playout_deadline_us, e.bounds.payload_clocks)


# The same for a datagram, which is RTP or ChannelData with RTP in it.
cdef inline void meter_datagram(Engine* e, Meter** kept, const uint8_t* data, uint32_t size) noexcept nogil:
    if not size or data[0] & 0xC0 != 0x40:
        meter(e, kept, data, size)
        return
    size = <uint32_t> datagram_unit(data, size)
    if size:
        meter(e, kept, data + 4, size - 4)


# Counts a packet that is not forwarded.
cdef inline void drop(Connection* c, int reason, int traffic) noexcept nogil:
    c.counters.drops[reason] += 1
    c.counters.drops_by_traffic[traffic] += 1


cdef inline void add_counters(Counters* totals, const Counters* more) noexcept nogil:
    cdef int number
    totals.uplink_packets += more.uplink_packets
    totals.uplink_bytes += more.uplink_bytes
    totals.downlink_packets += more.downlink_packets
    totals.downlink_bytes += more.downlink_bytes
    totals.retransmissions += more.retransmissions
    for number in range(DROPS):
        totals.drops[number] += more.drops[number]
    for number in range(TRAFFICS):
        totals.drops_by_traffic[number] += more.drops_by_traffic[number]


# Notes how long the packets sent since the last call were in the relay. One look at the clock serves several packets,
# so the figure is never too small for any of them.
cdef inline void note_time(Engine* e) noexcept nogil:
    cdef int64_t us = posix.monotonic_us() - e.looked_us
    if e.sent_up:
        record_many_us(&e.uplink_us, us, e.sent_up)
    if e.sent_down:
        record_many_us(&e.downlink_us, us, e.sent_down)
    e.sent_up = e.sent_down = 0
