# What waits for a client that takes less than comes: the compiled twin of relay.plane.reference.schedule, where the rules stand.
#
# Frames lie in chunks of memory, in the order in which they came, a queue for each class. A flow whose client reads
# has no chunks at all.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from relay.plane.compiled.leaves.live cimport free, malloc
from relay.plane.compiled.leaves.stun cimport ATTRIBUTE_DATA, DATA_INDICATION, datagram_unit, find_attribute, load16

# In the order of relay.plane.api.Traffic.
cdef enum:
    TRAFFIC_CONTROL
    TRAFFIC_RTCP
    TRAFFIC_MEDIA
    TRAFFIC_DATA
    TRAFFICS

cdef enum:
    CHUNK_BYTES = 4096
    # The bounds on what a flow holds, whatever the sizes of its frames: 320 KiB, which a burst of 200 KB fits into, and
    # 256 KiB of data.
    CHUNKS_A_FLOW = 80
    DATA_CHUNKS_A_FLOW = 64
    FRAME_HEADER_BYTES = 16
    RTCP_TYPE_FIRST = 192       # RFC 5761 section 4
    RTCP_TYPE_LAST = 223
    PEER_CONTROL_BYTES = 16384
    PEER_CONTROL_PERIOD_US = 1000000
    EARLY_DROP_US = 500000

cdef enum Put:
    PUT_DONE
    PUT_DROPPED                 # itself, for want of room
    PUT_REFUSED                 # control, and there is no room for it

cdef struct Chunk:
    Chunk* next
    uint8_t[CHUNK_BYTES - 8] data

cdef enum:
    CHUNK_ROOM = CHUNK_BYTES - 8

cdef enum:
    NO_UNIT = 0xFFFFFFFF        # for a size: what waits is the plane's own word, and no packet

# Before each frame's bytes, which are as they go to the client; it is never split between chunks, the bytes may be. It
# stands at any address.
cdef packed struct Frame:
    int64_t arrived_us
    uint32_t size               # of the unit in it, without header and padding
    uint32_t padded             # as it stands on the stream

cdef struct Queue:
    Chunk* head
    Chunk* tail
    uint32_t chunks
    uint32_t start              # of the first frame, in head
    uint32_t end                # behind the last one, in tail

cdef struct Schedule:
    Queue[TRAFFICS] queues
    uint32_t chunks             # of all queues
    uint32_t control_bytes      # as they stand on the stream, as those that follow
    uint32_t media_bytes        # RTCP included
    uint32_t data_bytes
    uint32_t peer_bytes         # that far peers have sent as control
    int64_t peer_since_us       # since then
    int64_t early_us            # when data was last dropped before there was no room
    int64_t oldest_us           # when the oldest frame came; 0 if none waits

# The bounds of one flow, and where it counts what it drops.
cdef struct Rules:
    int64_t max_age_us
    int64_t data_age_us
    uint32_t media_bytes
    uint32_t control_bytes
    uint32_t data_bytes
    uint64_t[TRAFFICS] old      # by class
    uint64_t[TRAFFICS] full


# The class of a unit, or of a datagram that is carried as it is: media may come bare.
cdef inline int traffic_of(const uint8_t* unit, uint32_t size) noexcept nogil:
    cdef const uint8_t* payload
    cdef uint32_t length
    if size >= 4 and unit[0] & 0xC0 == 0x40:
        length = load16(unit + 2)
        return kind_of(unit + 4, length if length < size - 4 else size - 4)
    if size >= 2 and load16(unit) == DATA_INDICATION and datagram_unit(unit, size):
        payload = find_attribute(unit, size, ATTRIBUTE_DATA, 0)
        if payload != NULL and kind_of(payload, load16(payload - 2)) == TRAFFIC_DATA:
            return TRAFFIC_DATA
        return TRAFFIC_MEDIA
    return kind_of(unit, size)


# The class of what a peer has sent, or the upstream itself (RFC 7983, RFC 5761).
cdef inline int kind_of(const uint8_t* payload, uint32_t size) noexcept nogil:
    if not size:
        return TRAFFIC_MEDIA
    if 20 <= payload[0] <= 22 or (payload[0] < 0x40 and datagram_unit(payload, size)):
        return TRAFFIC_CONTROL
    if payload[0] >> 6 != 2:
        return TRAFFIC_DATA
    return TRAFFIC_RTCP if size >= 2 and RTCP_TYPE_FIRST <= payload[1] <= RTCP_TYPE_LAST else TRAFFIC_MEDIA


# What passes over CONNECT-UDP: STUN, DTLS, ChannelData, RTP and RTCP (RFC 7983), and the empty datagram.
cdef inline bint is_media_datagram(const uint8_t* data, uint32_t size) noexcept nogil:
    return size == 0 or data[0] <= 3 or 20 <= data[0] <= 79 or 128 <= data[0] <= 191


cdef inline bint is_waiting(const Schedule* schedule) noexcept nogil:
    return schedule.chunks != 0


# True if more than data waits.
cdef inline bint is_urgent(const Schedule* schedule) noexcept nogil:
    return (schedule.control_bytes | schedule.media_bytes) != 0


cdef inline uint32_t waiting_bytes(const Schedule* schedule) noexcept nogil:
    return schedule.control_bytes + schedule.media_bytes + schedule.data_bytes


# --- A queue ---

cdef inline bint is_empty(const Queue* queue) noexcept nogil:
    return queue.head == NULL


cdef inline void drop_head(Schedule* schedule, Queue* queue) noexcept nogil:
    cdef Chunk* head = queue.head
    queue.head = head.next
    queue.start = 0
    if queue.head == NULL:
        queue.tail = NULL
    free(head)
    schedule.chunks -= 1
    queue.chunks -= 1


# How many chunks a frame of so many bytes needs beyond the last one.
cdef inline uint32_t chunks_needed(const Queue* queue, uint32_t bytes) noexcept nogil:
    cdef uint32_t room = CHUNK_ROOM - queue.end if queue.tail != NULL else 0
    if room < FRAME_HEADER_BYTES:
        room = 0
    bytes += FRAME_HEADER_BYTES
    return 0 if bytes <= room else (bytes - room + CHUNK_ROOM - 1) // CHUNK_ROOM


cdef inline bint add_chunk(Schedule* schedule, Queue* queue) noexcept nogil:
    cdef Chunk* chunk = <Chunk*> malloc(sizeof(Chunk))
    if chunk == NULL:
        return False
    chunk.next = NULL
    if queue.tail != NULL:
        queue.tail.next = chunk
    else:
        queue.head = chunk
        queue.start = 0
    queue.tail = chunk
    queue.end = 0
    schedule.chunks += 1
    queue.chunks += 1
    return True


# The header of the first frame; the queue is not empty.
cdef inline Frame* first_frame(Queue* queue) noexcept nogil:
    return <Frame*> (queue.head.data + queue.start)


# Behind ``bytes`` of the first frame's chunk; where they go is ``out``, or nowhere if it is NULL.
cdef inline void read_bytes(Schedule* schedule, Queue* queue, uint8_t* out, uint32_t bytes) noexcept nogil:
    cdef uint32_t part
    while bytes:
        if queue.start == CHUNK_ROOM:
            drop_head(schedule, queue)
        part = CHUNK_ROOM - queue.start
        if part > bytes:
            part = bytes
        if out != NULL:
            memcpy(out, queue.head.data + queue.start, part)
            out += part
        queue.start += part
        bytes -= part


# Takes the first frame; its bytes go to ``out``, or nowhere if it is NULL.
cdef inline void pop_frame(Schedule* schedule, int traffic, uint8_t* out) noexcept nogil:
    cdef Queue* queue = &schedule.queues[traffic]
    cdef uint32_t padded = first_frame(queue).padded
    queue.start += FRAME_HEADER_BYTES
    read_bytes(schedule, queue, out, padded)
    if traffic == TRAFFIC_CONTROL:
        schedule.control_bytes -= padded
    elif traffic == TRAFFIC_DATA:
        schedule.data_bytes -= padded
    else:
        schedule.media_bytes -= padded
    # The next frame's header is in this chunk, or at the beginning of the next one.
    if queue.head == queue.tail and queue.start == queue.end:
        drop_head(schedule, queue)
    elif queue.start + FRAME_HEADER_BYTES > CHUNK_ROOM:
        drop_head(schedule, queue)


# Puts a frame at the end; False without memory, and then nothing of it is left.
cdef inline bint push_frame(
    Schedule* schedule, int traffic, int64_t now_us, const uint8_t* unit, uint32_t size, uint32_t padded
) noexcept nogil:
    cdef Queue* queue = &schedule.queues[traffic]
    cdef Chunk* last = queue.tail
    cdef uint32_t end = queue.end, part, left = padded
    cdef Frame* frame
    if queue.tail == NULL or queue.end + FRAME_HEADER_BYTES > CHUNK_ROOM:
        if not add_chunk(schedule, queue):
            return False
    frame = <Frame*> (queue.tail.data + queue.end)
    frame.arrived_us, frame.size, frame.padded = now_us, size, padded
    queue.end += FRAME_HEADER_BYTES
    while left:
        if queue.end == CHUNK_ROOM and not add_chunk(schedule, queue):
            cut_back(schedule, queue, last, end)
            return False
        part = CHUNK_ROOM - queue.end
        if part > left:
            part = left
        memcpy(queue.tail.data + queue.end, unit, part)
        unit += part
        queue.end += part
        left -= part
    return True


# Makes a chunk the last one again.
cdef inline void cut_back(Schedule* schedule, Queue* queue, Chunk* last, uint32_t end) noexcept nogil:
    cdef Chunk* chunk = last.next if last != NULL else queue.head
    cdef Chunk* following
    while chunk != NULL:
        following = chunk.next
        free(chunk)
        schedule.chunks -= 1
        queue.chunks -= 1
        chunk = following
    queue.tail, queue.end = last, end
    if last != NULL:
        last.next = NULL
    else:
        queue.head = NULL


# --- The rules ---

cdef inline void note_oldest(Schedule* schedule) noexcept nogil:
    cdef int64_t oldest_us = 0, arrived_us
    cdef int traffic
    for traffic in range(TRAFFICS):
        if not is_empty(&schedule.queues[traffic]):
            arrived_us = first_frame(&schedule.queues[traffic]).arrived_us
            if not oldest_us or arrived_us < oldest_us:
                oldest_us = arrived_us
    schedule.oldest_us = oldest_us


# What is too old leaves, the oldest first.
cdef inline void expire(Schedule* schedule, Rules* rules, int64_t now_us) noexcept nogil:
    cdef int traffic
    cdef int64_t age_us
    for traffic in range(TRAFFIC_RTCP, TRAFFICS):
        age_us = rules.data_age_us if traffic == TRAFFIC_DATA else rules.max_age_us
        while not is_empty(&schedule.queues[traffic]):
            if now_us - first_frame(&schedule.queues[traffic]).arrived_us <= age_us:
                break
            pop_frame(schedule, traffic, NULL)
            rules.old[traffic] += 1


# The oldest media makes room; False if there is none left.
cdef inline bint make_room(Schedule* schedule, Rules* rules) noexcept nogil:
    cdef int traffic = TRAFFIC_MEDIA
    if is_empty(&schedule.queues[TRAFFIC_MEDIA]):
        traffic = TRAFFIC_RTCP
        if is_empty(&schedule.queues[TRAFFIC_RTCP]):
            return False
    pop_frame(schedule, traffic, NULL)
    rules.full[traffic] += 1
    return True


# The class of control that a far peer has sent: beyond its bounds it is data.
cdef inline int judge_peer(Schedule* schedule, const Rules* rules, int64_t now_us, uint32_t padded) noexcept nogil:
    if now_us - schedule.peer_since_us >= PEER_CONTROL_PERIOD_US:
        schedule.peer_since_us, schedule.peer_bytes = now_us, 0
    if schedule.peer_bytes + padded > PEER_CONTROL_BYTES or schedule.control_bytes + padded > rules.control_bytes // 2:
        return TRAFFIC_DATA
    schedule.peer_bytes += padded
    return TRAFFIC_CONTROL


# True once in a while where a quarter of the room for data is taken.
cdef inline bint is_early_drop(Schedule* schedule, const Rules* rules, int64_t now_us) noexcept nogil:
    if schedule.data_bytes <= rules.data_bytes // 4 or now_us - schedule.early_us < EARLY_DROP_US:
        return False
    schedule.early_us = now_us
    return True


# True if the chunks suffice for one more frame.
cdef inline bint has_chunks(Schedule* schedule, int traffic, uint32_t padded) noexcept nogil:
    cdef uint32_t needed = chunks_needed(&schedule.queues[traffic], padded)
    cdef uint32_t data = schedule.queues[TRAFFIC_DATA].chunks
    if traffic == TRAFFIC_DATA:
        return data + needed <= DATA_CHUNKS_A_FLOW
    return schedule.chunks - data + needed <= CHUNKS_A_FLOW


# Lets a frame wait: ``padded`` bytes as they go to the client, with a unit of ``size`` bytes in it.
cdef inline Put put_frame(
    Schedule* schedule, Rules* rules, int64_t now_us, int traffic, const uint8_t* frame, uint32_t size, uint32_t padded
) noexcept nogil:
    expire(schedule, rules, now_us)
    if traffic == TRAFFIC_CONTROL:
        if schedule.control_bytes + padded > rules.control_bytes:
            note_oldest(schedule)
            return PUT_REFUSED
    elif traffic == TRAFFIC_DATA:
        if schedule.data_bytes + padded > rules.data_bytes or is_early_drop(schedule, rules, now_us):
            rules.full[traffic] += 1
            note_oldest(schedule)
            return PUT_DROPPED
    elif padded > rules.media_bytes:
        rules.full[traffic] += 1
        note_oldest(schedule)
        return PUT_DROPPED
    else:
        while schedule.media_bytes + padded > rules.media_bytes:
            make_room(schedule, rules)
    while traffic != TRAFFIC_DATA and not has_chunks(schedule, traffic, padded):
        if not make_room(schedule, rules):
            break
    if (
        not has_chunks(schedule, traffic, padded)
        or not push_frame(schedule, traffic, now_us, frame, size, padded)
    ):
        note_oldest(schedule)
        if traffic == TRAFFIC_CONTROL:
            return PUT_REFUSED
        rules.full[traffic] += 1
        return PUT_DROPPED
    if traffic == TRAFFIC_CONTROL:
        schedule.control_bytes += padded
    elif traffic == TRAFFIC_DATA:
        schedule.data_bytes += padded
    else:
        schedule.media_bytes += padded
    note_oldest(schedule)
    return PUT_DONE


# The class whose frame leaves next; TRAFFICS if none waits.
cdef inline int next_class(Schedule* schedule) noexcept nogil:
    cdef int traffic
    for traffic in range(TRAFFICS):
        if not is_empty(&schedule.queues[traffic]):
            return traffic
    return TRAFFICS


# Lets go of all that waits; what it was stays to be read.
cdef inline void clear_schedule(Schedule* schedule) noexcept nogil:
    cdef int traffic
    for traffic in range(TRAFFICS):
        while not is_empty(&schedule.queues[traffic]):
            drop_head(schedule, &schedule.queues[traffic])
