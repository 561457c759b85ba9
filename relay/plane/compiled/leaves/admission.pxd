# Users whom control lets in: the Allocate that waits for its word, and whether the answer to one that was granted does.

from libc.stdint cimport uint8_t, uint32_t
from relay.plane.compiled.leaves.live cimport free
from relay.plane.compiled.leaves.stun cimport (
    ALLOCATE_REQUEST, ATTRIBUTE_MOBILITY_TICKET, ATTRIBUTE_USERNAME, REFRESH_REQUEST, find_attribute, has_credentials, load16
)

cdef enum:
    # One with a name and a hash has 200 bytes.
    MAX_ASKED_BYTES = 2048

cdef struct Admission:
    bint asks                   # otherwise everybody is let in
    uint8_t* asked              # the Allocate that waits, or NULL
    uint32_t asked_size
    bint granted                # the upstream has granted an allocation, and control has the answer


# True if control is to be asked about this STUN message. Nobody slips by without a name, or with one where only some
# servers look for it; nor with the allocation of another connection, whose place ends with that.
cdef inline bint is_to_ask(const uint8_t* message, uint32_t size) noexcept nogil:
    if load16(message) == REFRESH_REQUEST:
        return find_attribute(message, size, ATTRIBUTE_MOBILITY_TICKET, 0) != NULL
    if load16(message) != ALLOCATE_REQUEST:
        return False
    return find_attribute(message, size, ATTRIBUTE_USERNAME, 0) != NULL or has_credentials(message, size)


# True for a datagram that a TURN server takes for TURN, or throws away. DTLS is neither: inside it could be any Allocate.
cdef inline bint is_turn_datagram(const uint8_t* data, uint32_t size) noexcept nogil:
    return not size or data[0] < 4 or data[0] & 0xC0 == 0x40


# True while control owes a word.
cdef inline bint is_waiting_for_control(const Admission* admission) noexcept nogil:
    return admission.asked != NULL or admission.granted


# The one that waits is let in: the caller owns it.
cdef inline uint8_t* take_asked(Admission* admission) noexcept nogil:
    cdef uint8_t* request = admission.asked
    admission.asked = NULL
    return request


cdef inline void clear_admission(Admission* admission) noexcept nogil:
    free(admission.asked)
    admission.asked = NULL
    admission.granted = False
