# Users whom control lets in, one after the other on a connection: the Allocate that waits for its word, and the name
# that it admitted last.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp

from relay.plane.buffer cimport keep_bytes
from relay.plane.live cimport free
from relay.plane.stun cimport ALLOCATE_REQUEST, ATTRIBUTE_USERNAME, find_attribute, has_credentials, load16

cdef enum:
    # One with a name and a hash has 200 bytes.
    MAX_ASKED_BYTES = 2048

cdef struct Admission:
    bint asks                   # otherwise everybody is let in
    uint8_t* asked              # the Allocate that waits, or NULL
    uint32_t asked_size
    uint8_t* admitted           # USERNAME, with type and length, so that an empty name is one, too
    uint32_t admitted_size


# True if control is to be asked about this STUN message. Nobody slips by without a name, or with one where only some
# servers look for it.
cdef inline bint is_to_ask(const Admission* admission, const uint8_t* message, uint32_t size) noexcept nogil:
    cdef const uint8_t* name
    if load16(message) != ALLOCATE_REQUEST:
        return False
    name = find_attribute(message, size, ATTRIBUTE_USERNAME, 0)
    if name == NULL:
        return has_credentials(message, size)
    return (
        admission.admitted == NULL or
        admission.admitted_size != 4 + <uint32_t> load16(name - 2)
        or memcmp(admission.admitted, name - 4, admission.admitted_size) != 0
    )


# The one that waits is let in: the caller owns it.
cdef inline uint8_t* take_admitted(Admission* admission) noexcept nogil:
    cdef uint8_t* request = admission.asked
    cdef const uint8_t* name = find_attribute(request, admission.asked_size, ATTRIBUTE_USERNAME, 0)
    if name != NULL:
        keep_bytes(&admission.admitted, &admission.admitted_size, name - 4, 4 + <uint32_t> load16(name - 2))
    admission.asked = NULL
    return request


cdef inline void forget_asked(Admission* admission) noexcept nogil:
    free(admission.asked)
    admission.asked = NULL


cdef inline void clear_admission(Admission* admission) noexcept nogil:
    forget_asked(admission)
    free(admission.admitted)
    admission.admitted = NULL
