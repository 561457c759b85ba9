# Whether TCP is behind: the compiled twin of relay.plane.reference.pace, where the rule and its reasons stand.

from libc.stdint cimport int64_t, uint32_t

from relay.plane.compiled.leaves.posix cimport SIOCOUTQ, ioctl

cdef enum:
    MARKS = 16
    MARKS_IN_TIME = 12
    UNACKNOWLEDGED_WRITES = 4
    UNACKNOWLEDGED_BYTES = 1024
    LARGE_WRITES = 2
    BEHIND_US = 50000           # beyond the least round trip
    MIN_WINDOW = 1024
    MAX_WINDOW = 262144
    BEHIND_BESIDE_DATA_US = 100000
    VOICE_BESIDE_DATA_BYTES = 4096
    DATA_BEHIND_US = 40000
    MIN_DATA_WINDOW = 8192

# Writes that TCP may not have delivered yet: up to which byte, and when. Counts of bytes wrap.
cdef struct Pace:
    uint32_t first
    uint32_t count
    uint32_t acknowledged       # as far as is known
    uint32_t window             # bytes that may be on their way; 0: as many as TCP takes
    uint32_t data_window        # what was on its way when it became late for data
    bint late                   # the oldest write is
    bint data_late              # the oldest write is, for data
    bint behind                 # the last answer
    bint holds_data             # with the last answer: data waits
    uint32_t[MARKS] end
    int64_t[MARKS] at_us


# Notes that all up to this byte has been given to TCP.
cdef inline void note_write(Pace* pace, uint32_t end, int64_t now_us, uint32_t rtt_us) noexcept nogil:
    cdef uint32_t last = (pace.first + pace.count - 1) % MARKS
    if pace.count == MARKS or (
        pace.count >= UNACKNOWLEDGED_WRITES
        and now_us - pace.at_us[last] < (<int64_t> rtt_us + BEHIND_US) // MARKS_IN_TIME
    ):
        # It is judged with the one before it, which is older.
        pace.end[last] = end
    else:
        last = (pace.first + pace.count) % MARKS
        pace.end[last], pace.at_us[last] = end, now_us
        pace.count += 1


# Forgets what has been delivered.
cdef inline void acknowledge(Pace* pace, uint32_t acknowledged) noexcept nogil:
    if pace.window and not pace.late:
        pace.window += acknowledged - pace.acknowledged
        if pace.window > MAX_WINDOW:
            pace.window = 0
    pace.acknowledged = acknowledged
    while pace.count and <int> (acknowledged - pace.end[pace.first]) >= 0:
        pace.first = (pace.first + 1) % MARKS
        pace.count -= 1


cdef inline bint is_much(const Pace* pace, uint32_t given) noexcept nogil:
    return pace.count >= UNACKNOWLEDGED_WRITES or (
        pace.count >= LARGE_WRITES and given - pace.acknowledged >= UNACKNOWLEDGED_BYTES)


# Asks the kernel only if so much is not known to be delivered that it could matter.
cdef inline bint is_behind(
    Pace* pace, int fd, uint32_t given, uint32_t rtt_us, int64_t now_us, bint beside_data
) noexcept nogil:
    cdef int queued = 0
    pace.behind = pace.holds_data = False
    if not is_much(pace, given) or ioctl(fd, SIOCOUTQ, &queued) < 0:
        return False
    acknowledge(pace, given - <uint32_t> queued)
    if is_much(pace, given):
        judge(pace, <uint32_t> queued, now_us - pace.at_us[pace.first] - rtt_us, beside_data)
    else:
        pace.late = pace.data_late = False
    return pace.behind


# ``late_us``: of the oldest write, beyond the least round trip.
cdef inline void judge(Pace* pace, uint32_t queued, int64_t late_us, bint beside_data) noexcept nogil:
    judge_data(pace, queued, late_us > DATA_BEHIND_US)
    if beside_data:
        pace.late = False
        pace.behind = late_us > BEHIND_BESIDE_DATA_US and queued >= pace.data_window + VOICE_BESIDE_DATA_BYTES
    elif late_us <= BEHIND_US:
        pace.late = False
        pace.behind = pace.window != 0 and queued >= pace.window
    else:
        if not pace.late:
            pace.late = True
            pace.window = queued // 2 if queued > 2 * MIN_WINDOW else MIN_WINDOW
        pace.behind = True


cdef inline void judge_data(Pace* pace, uint32_t queued, bint late) noexcept nogil:
    if late and not pace.data_late:
        pace.data_window = queued if queued > MIN_DATA_WINDOW else MIN_DATA_WINDOW
    pace.data_late = late
    pace.holds_data = late and queued >= pace.data_window
