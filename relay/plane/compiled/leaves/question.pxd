# Whether an upstream is still there: the compiled twin of relay.plane.reference.question, where the rule and its reasons stand.

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from relay.plane.compiled.leaves.posix cimport getrandom
from relay.plane.compiled.leaves.stun cimport (
    BINDING_REQUEST, CREATE_PERMISSION_REQUEST, STUN_HEADER_BYTES, TRANSACTION_ID_OFFSET,
)

cdef enum:
    QUESTION_BYTES = STUN_HEADER_BYTES
    PREFIX_BYTES = 8

cdef enum Judgement:
    JUDGEMENT_WAIT
    JUDGEMENT_ASK
    JUDGEMENT_GONE

cdef struct Question:
    uint32_t asked              # how many questions there were
    uint8_t[PREFIX_BYTES] prefix    # of their transaction ids; drawn for the first one
    int64_t quiet_since_us      # the silence that has been asked about, 0 for none
    int64_t first_us            # when it was first
    int64_t due_us              # when it is to be asked about again
    int64_t wait_us


cdef inline int64_t next_question_us(Question* question, int64_t quiet_since_us, int64_t silence_us) noexcept nogil:
    cdef int64_t gone_us = question.first_us + silence_us // 2
    if quiet_since_us != question.quiet_since_us:
        return quiet_since_us + silence_us // 2
    return question.due_us if question.due_us < gone_us else gone_us


cdef inline Judgement judge(
    Question* question, int64_t now_us, int64_t quiet_since_us, int64_t silence_us, int64_t rto_us
) noexcept nogil:
    if quiet_since_us != question.quiet_since_us:
        if now_us < quiet_since_us + silence_us // 2:
            return JUDGEMENT_WAIT
        question.quiet_since_us, question.first_us = quiet_since_us, now_us
        question.wait_us = rto_us if rto_us < silence_us // 8 else silence_us // 8
    elif now_us >= question.first_us + silence_us // 2:
        return JUDGEMENT_GONE
    elif now_us < question.due_us:
        return JUDGEMENT_WAIT
    else:
        question.wait_us *= 2
    question.due_us = now_us + question.wait_us
    return JUDGEMENT_ASK


# Writes the next question, of QUESTION_BYTES.
cdef inline void write_question(Question* question, uint8_t* message) noexcept nogil:
    cdef uint8_t[4] cookie = [0x21, 0x12, 0xA4, 0x42]
    cdef uint32_t number, i
    if not question.asked:
        # Of eight bytes the kernel gives all once it has started; before that these are zeroes, and good enough.
        getrandom(question.prefix, PREFIX_BYTES, 0)
    memset(message, 0, QUESTION_BYTES)
    message[1] = BINDING_REQUEST if question.asked % 2 == 0 else CREATE_PERMISSION_REQUEST
    question.asked += 1
    number = question.asked
    memcpy(message + 4, cookie, 4)
    memcpy(message + TRANSACTION_ID_OFFSET, question.prefix, PREFIX_BYTES)
    for i in range(4):
        message[QUESTION_BYTES - 1 - i] = <uint8_t> (number >> (8 * i))


# True if a response answers one of the questions.
cdef inline bint answers_question(const Question* question, const uint8_t* message) noexcept nogil:
    return question.asked and memcmp(message + TRANSACTION_ID_OFFSET, question.prefix, PREFIX_BYTES) == 0
