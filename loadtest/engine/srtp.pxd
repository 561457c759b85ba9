# SRTP with AES_CM_128_HMAC_SHA1_80 (RFC 3711): protect and unprotect in place, with contexts that are made once for each
# stream. No replay list: a duplicate is what the load tester wants to see.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from loadtest.engine.openssl cimport (
    CRYPTO_memcmp, EVP_CIPHER_CTX_free, EVP_CIPHER_CTX_new, EVP_EncryptUpdate, EVP_MAC, EVP_MAC_CTX_free,
    EVP_MAC_CTX_new, EVP_MAC_final, EVP_MAC_init, EVP_MAC_update, EVP_aes_128_ctr,
)
from relay.plane.compiled.leaves.live cimport LIVE_CONTEXTS, count_live
from relay.plane.compiled.leaves.openssl cimport (
    EVP_CIPHER_CTX, EVP_EncryptInit_ex, EVP_MAC_CTX, OSSL_PARAM, OSSL_PARAM_construct_end,
    OSSL_PARAM_construct_utf8_string,
)
from relay.plane.compiled.leaves.stun cimport load16

cdef enum:
    SRTP_KEY_BYTES = 16
    SRTP_SALT_BYTES = 14
    SRTP_MASTER_BYTES = 30          # the key and then the salt, as a=crypto has them (RFC 4568 section 6.2)
    SRTP_AUTH_KEY_BYTES = 20
    SRTP_TAG_BYTES = 10
    SRTP_DIGEST_BYTES = 20
    RTP_HEADER_BYTES = 12

# Labels of section 4.3.2.
cdef enum Label:
    LABEL_CIPHER = 0
    LABEL_AUTH = 1
    LABEL_SALT = 2

cdef enum SrtpFault:
    SRTP_MALFORMED = -1
    SRTP_FORGED = -2

cdef struct Srtp:
    EVP_CIPHER_CTX* cipher
    EVP_MAC_CTX* mac
    uint8_t[16] salt                # two zero bytes follow, where the block counter is
    uint32_t rollovers              # of the sequence number, as the receiver knows them
    uint16_t highest
    bint begun


# Counter mode from this block on. False if OpenSSL fails.
cdef inline bint cipher_from(EVP_CIPHER_CTX* cipher, const uint8_t* block, uint8_t* data, int size) noexcept nogil:
    cdef int done = 0
    return EVP_EncryptInit_ex(cipher, NULL, NULL, NULL, block) == 1 and (
        EVP_EncryptUpdate(cipher, data, &done, data, size) == 1)


# Section 4.3.3, without key derivation rate: ``cipher`` has the master key.
cdef inline bint derive(
    EVP_CIPHER_CTX* cipher, const uint8_t* master_salt, Label label, uint8_t* out, int size
) noexcept nogil:
    cdef uint8_t[16] block
    memcpy(block, master_salt, SRTP_SALT_BYTES)
    block[14] = block[15] = 0
    block[7] ^= <uint8_t> label
    memset(out, 0, size)
    return cipher_from(cipher, block, out, size)


cdef inline int contexts_of(const Srtp* srtp) noexcept nogil:
    return (srtp.cipher != NULL) + (srtp.mac != NULL)


# ``hmac`` is OpenSSL's HMAC. False without memory; then close it all the same.
cdef inline bint open_srtp(Srtp* srtp, EVP_MAC* hmac, const uint8_t* master) noexcept nogil:
    cdef uint8_t[SRTP_KEY_BYTES] key
    cdef uint8_t[SRTP_AUTH_KEY_BYTES] auth_key
    cdef OSSL_PARAM[2] parameters
    cdef const uint8_t* master_salt = master + SRTP_KEY_BYTES
    memset(srtp, 0, sizeof(Srtp))
    srtp.cipher = EVP_CIPHER_CTX_new()
    srtp.mac = EVP_MAC_CTX_new(hmac)
    count_live(LIVE_CONTEXTS, contexts_of(srtp))
    if srtp.cipher == NULL or srtp.mac == NULL:
        return False
    parameters[0] = OSSL_PARAM_construct_utf8_string(b"digest", <char*> b"SHA1", 0)
    parameters[1] = OSSL_PARAM_construct_end()
    return (
        EVP_EncryptInit_ex(srtp.cipher, EVP_aes_128_ctr(), NULL, master, NULL) == 1
        and derive(srtp.cipher, master_salt, LABEL_CIPHER, key, SRTP_KEY_BYTES)
        and derive(srtp.cipher, master_salt, LABEL_AUTH, auth_key, SRTP_AUTH_KEY_BYTES)
        and derive(srtp.cipher, master_salt, LABEL_SALT, srtp.salt, SRTP_SALT_BYTES)
        and EVP_EncryptInit_ex(srtp.cipher, NULL, NULL, key, NULL) == 1
        and EVP_MAC_init(srtp.mac, auth_key, SRTP_AUTH_KEY_BYTES, parameters) == 1
    )


cdef inline void close_srtp(Srtp* srtp) noexcept nogil:
    count_live(LIVE_CONTEXTS, -contexts_of(srtp))
    EVP_CIPHER_CTX_free(srtp.cipher)
    EVP_MAC_CTX_free(srtp.mac)
    srtp.cipher = NULL
    srtp.mac = NULL


# The header with contributing sources and extension (RFC 3550 section 5.1); 0 if the packet is shorter, or not RTP.
cdef inline uint32_t rtp_header_bytes(const uint8_t* packet, uint32_t size) noexcept nogil:
    cdef uint32_t bytes
    if size < RTP_HEADER_BYTES or packet[0] >> 6 != 2:
        return 0
    bytes = RTP_HEADER_BYTES + 4 * <uint32_t> (packet[0] & 0x0F)
    if packet[0] & 0x10:
        if bytes + 4 > size:
            return 0
        bytes += 4 + 4 * <uint32_t> load16(packet + bytes + 2)
    return bytes if bytes <= size else 0


# Encrypts or decrypts the payload of the packet with this index (section 4.1.1).
cdef inline bint cipher_payload(
    Srtp* srtp, uint8_t* packet, uint32_t header, uint32_t size, uint64_t index
) noexcept nogil:
    cdef uint8_t[16] block
    cdef int i
    memcpy(block, srtp.salt, 16)
    for i in range(4):
        block[4 + i] ^= packet[8 + i]
    for i in range(6):
        block[8 + i] ^= <uint8_t> (index >> (40 - 8 * i))
    return cipher_from(srtp.cipher, block, packet + header, <int> (size - header))


# The tag over the packet and the rollover counter (section 4.2), of which SRTP_TAG_BYTES are sent.
cdef inline bint digest(Srtp* srtp, const uint8_t* packet, uint32_t size, uint32_t rollovers, uint8_t* out) noexcept nogil:
    cdef uint8_t[4] counter
    cdef size_t length = 0
    cdef int i
    for i in range(4):
        counter[i] = <uint8_t> (rollovers >> (24 - 8 * i))
    return (
        EVP_MAC_init(srtp.mac, NULL, 0, NULL) == 1
        and EVP_MAC_update(srtp.mac, packet, size) == 1
        and EVP_MAC_update(srtp.mac, counter, 4) == 1
        and EVP_MAC_final(srtp.mac, out, &length, SRTP_DIGEST_BYTES) == 1
    )


# Protects an RTP packet whose sequence number is the index' lower half. There is room for the tag. The size with it, or 0
# if it is not RTP.
cdef inline uint32_t protect(Srtp* srtp, uint8_t* packet, uint32_t size, uint64_t index) noexcept nogil:
    cdef uint8_t[SRTP_DIGEST_BYTES] tag
    cdef uint32_t header = rtp_header_bytes(packet, size)
    if not header or not cipher_payload(srtp, packet, header, size, index):
        return 0
    if not digest(srtp, packet, size, <uint32_t> (index >> 16), tag):
        return 0
    memcpy(packet + size, tag, SRTP_TAG_BYTES)
    return size + SRTP_TAG_BYTES


# The rollover counter of a packet that has just come: the one that is next to the highest (appendix A).
cdef inline uint32_t rollovers_of(const Srtp* srtp, uint16_t sequence) noexcept nogil:
    if not srtp.begun:
        return srtp.rollovers
    if srtp.highest < 0x8000:
        return srtp.rollovers - (srtp.rollovers > 0 and sequence > srtp.highest + 0x8000)
    return srtp.rollovers + (sequence < srtp.highest - 0x8000)


cdef inline void note_index(Srtp* srtp, uint32_t rollovers, uint16_t sequence) noexcept nogil:
    if not srtp.begun or rollovers > srtp.rollovers or (rollovers == srtp.rollovers and sequence > srtp.highest):
        srtp.rollovers, srtp.highest, srtp.begun = rollovers, sequence, True


# Verifies and decrypts. The size of the RTP packet, or a fault; then the packet is as it was.
cdef inline int unprotect(Srtp* srtp, uint8_t* packet, uint32_t size) noexcept nogil:
    cdef uint8_t[SRTP_DIGEST_BYTES] tag
    cdef uint32_t header, rollovers
    cdef uint16_t sequence
    if size < RTP_HEADER_BYTES + SRTP_TAG_BYTES:
        return SRTP_MALFORMED
    size -= SRTP_TAG_BYTES
    header = rtp_header_bytes(packet, size)
    if not header:
        return SRTP_MALFORMED
    sequence = load16(packet + 2)
    rollovers = rollovers_of(srtp, sequence)
    if not digest(srtp, packet, size, rollovers, tag) or CRYPTO_memcmp(tag, packet + size, SRTP_TAG_BYTES):
        return SRTP_FORGED
    note_index(srtp, rollovers, sequence)
    if not cipher_payload(srtp, packet, header, size, <uint64_t> rollovers << 16 | sequence):
        return SRTP_MALFORMED
    return <int> size
