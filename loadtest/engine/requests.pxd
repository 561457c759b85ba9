# The requests of a TURN client (RFC 8656), signed with a long-term credential (RFC 8489 section 9.2) once the server has
# asked for it, and what is read of the answers.

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from loadtest.engine.addresses cimport (
    MAX_XOR_ADDRESS_BYTES, STUN_IPV6, build_xor_address, parse_xor_address, write_address,
)
from loadtest.engine.engine cimport (
    FIRST_CHANNEL, KEY_BYTES, NONCE_BYTES, REALM_BYTES, TEXT_PASSWORD, TEXT_USERNAME, TRANSACTION_BYTES,
    Client, Endpoint, Engine, Peer,
)
from loadtest.engine.openssl cimport (
    CRYPTO_memcmp, EVP_Digest, EVP_MAC_final, EVP_MAC_init, EVP_MAC_update, EVP_md5,
)
from relay.plane.compiled.leaves.openssl cimport EVP_MAC_CTX
from relay.plane.compiled.leaves.stun cimport (
    ALLOCATE_REQUEST, ATTRIBUTE_LIFETIME, ATTRIBUTE_MESSAGE_INTEGRITY, ATTRIBUTE_USERNAME,
    ATTRIBUTE_XOR_RELAYED_ADDRESS, CHANNEL_BIND_REQUEST, REFRESH_REQUEST, STUN_HEADER_BYTES, find_attribute, load16,
    load32,
)

cdef enum:
    ATTRIBUTE_CHANNEL_NUMBER = 0x000C
    ATTRIBUTE_XOR_PEER_ADDRESS = 0x0012
    ATTRIBUTE_REALM = 0x0014
    ATTRIBUTE_NONCE = 0x0015
    ATTRIBUTE_REQUESTED_ADDRESS_FAMILY = 0x0017
    ATTRIBUTE_REQUESTED_TRANSPORT = 0x0019
    INTEGRITY_BYTES = 20
    UDP_PROTOCOL = 17
    # The longest: 508 bytes of user name, realm and nonce in full, and 100 of the rest.
    MAX_USERNAME_BYTES = 508
    MAX_PASSWORD_BYTES = 256


cdef inline void store16(uint8_t* data, uint32_t value) noexcept nogil:
    data[0], data[1] = <uint8_t> (value >> 8), <uint8_t> value


cdef inline void store32(uint8_t* data, uint32_t value) noexcept nogil:
    store16(data, value >> 16)
    store16(data + 2, value)


cdef inline uint32_t message_bytes(const uint8_t* message) noexcept nogil:
    return STUN_HEADER_BYTES + load16(message + 2)


cdef inline void begin_message(uint8_t* message, uint16_t kind, const uint8_t* transaction) noexcept nogil:
    store16(message, kind)
    store16(message + 2, 0)
    store32(message + 4, 0x2112A442)
    memcpy(message + 8, transaction, TRANSACTION_BYTES)


# Appends an attribute, with zero padding. The caller has the room.
cdef inline void add_attribute(uint8_t* message, uint16_t kind, const void* value, uint32_t size) noexcept nogil:
    cdef uint8_t* to = message + message_bytes(message)
    cdef uint32_t padded = (size + 3) & ~<uint32_t> 3
    store16(to, kind)
    store16(to + 2, size)
    memset(to + 4, 0, padded)
    memcpy(to + 4, value, size)
    store16(message + 2, load16(message + 2) + 4 + padded)


cdef inline void add_number(uint8_t* message, uint16_t kind, uint32_t value) noexcept nogil:
    cdef uint8_t[4] octets
    store32(octets, value)
    add_attribute(message, kind, octets, 4)


cdef inline void add_peer(uint8_t* message, const Peer* peer) noexcept nogil:
    cdef uint8_t[MAX_XOR_ADDRESS_BYTES] value
    cdef uint32_t size = build_xor_address(&peer.address, message, value)
    add_attribute(message, ATTRIBUTE_XOR_PEER_ADDRESS, value, size)


cdef inline void sign(EVP_MAC_CTX* signer, Client* c, uint8_t* message) noexcept nogil:
    cdef uint8_t[INTEGRITY_BYTES] digest
    cdef uint32_t size
    cdef size_t length = 0
    add_attribute(message, ATTRIBUTE_USERNAME, c.plan.texts[<int> TEXT_USERNAME], c.plan.sizes[<int> TEXT_USERNAME])
    add_attribute(message, ATTRIBUTE_REALM, c.realm, c.realm_size)
    add_attribute(message, ATTRIBUTE_NONCE, c.nonce, c.nonce_size)
    size = message_bytes(message)
    # The length counts the attribute already.
    store16(message + 2, load16(message + 2) + 4 + INTEGRITY_BYTES)
    memset(digest, 0, INTEGRITY_BYTES)
    if EVP_MAC_init(signer, c.key, KEY_BYTES, NULL) == 1 and EVP_MAC_update(signer, message, size) == 1:
        EVP_MAC_final(signer, digest, &length, INTEGRITY_BYTES)
    store16(message + 2, size - STUN_HEADER_BYTES)
    add_attribute(message, ATTRIBUTE_MESSAGE_INTEGRITY, digest, INTEGRITY_BYTES)


# Whether an answer to a signed request proves that the server knows the password (RFC 8489 section 9.2.5).
cdef inline bint is_proven(EVP_MAC_CTX* signer, Client* c, const uint8_t* message, uint32_t size) noexcept nogil:
    cdef const uint8_t* tag = find_attribute(message, size, ATTRIBUTE_MESSAGE_INTEGRITY, INTEGRITY_BYTES)
    cdef uint8_t[INTEGRITY_BYTES] digest
    cdef uint8_t[4] head
    cdef uint32_t end
    cdef size_t length = 0
    if tag == NULL or load16(tag - 2) != INTEGRITY_BYTES:
        return False
    end = <uint32_t> (tag - message) - 4
    # The length that was signed ends with the attribute.
    store16(head, load16(message))
    store16(head + 2, end + 4 + INTEGRITY_BYTES - STUN_HEADER_BYTES)
    return (
        EVP_MAC_init(signer, c.key, KEY_BYTES, NULL) == 1
        and EVP_MAC_update(signer, head, 4) == 1
        and EVP_MAC_update(signer, message + 4, end - 4) == 1
        and EVP_MAC_final(signer, digest, &length, INTEGRITY_BYTES) == 1
        and CRYPTO_memcmp(digest, tag, INTEGRITY_BYTES) == 0
    )


# Builds the request that the client waits with, the same each time that it is sent; how long it is.
cdef inline uint32_t build_request(Engine* e, Client* c, bint ends, uint8_t* message) noexcept nogil:
    begin_message(message, c.method, c.transaction)
    if c.method == ALLOCATE_REQUEST:
        add_number(message, ATTRIBUTE_REQUESTED_TRANSPORT, <uint32_t> UDP_PROTOCOL << 24)
        if c.plan.ipv6:
            add_number(message, ATTRIBUTE_REQUESTED_ADDRESS_FAMILY, <uint32_t> STUN_IPV6 << 24)
    if c.method == REFRESH_REQUEST and ends:
        add_number(message, ATTRIBUTE_LIFETIME, 0)
    elif c.method != CHANNEL_BIND_REQUEST and c.plan.lifetime_s:
        add_number(message, ATTRIBUTE_LIFETIME, c.plan.lifetime_s)
    if c.method == CHANNEL_BIND_REQUEST:
        add_number(message, ATTRIBUTE_CHANNEL_NUMBER, (FIRST_CHANNEL + c.about) << 16)
        add_peer(message, &c.peers[c.about])
    if c.nonce_size:
        sign(e.signer, c, message)
    return message_bytes(message)


# Takes realm and nonce of an error. False without them, without a credential, or if they are too long.
cdef inline bint take_challenge(Client* c, const uint8_t* message, uint32_t size) noexcept nogil:
    cdef const uint8_t* realm = find_attribute(message, size, ATTRIBUTE_REALM, 0)
    cdef const uint8_t* nonce = find_attribute(message, size, ATTRIBUTE_NONCE, 1)
    cdef uint8_t[MAX_USERNAME_BYTES + REALM_BYTES + MAX_PASSWORD_BYTES + 2] text
    cdef uint32_t length = c.plan.sizes[<int> TEXT_USERNAME], password = c.plan.sizes[<int> TEXT_PASSWORD]
    if realm == NULL or nonce == NULL or not length:
        return False
    c.realm_size, c.nonce_size = load16(realm - 2), load16(nonce - 2)
    if c.realm_size > REALM_BYTES or c.nonce_size > NONCE_BYTES:
        c.nonce_size = 0
        return False
    memcpy(c.realm, realm, c.realm_size)
    memcpy(c.nonce, nonce, c.nonce_size)
    memcpy(text, c.plan.texts[<int> TEXT_USERNAME], length)
    text[length] = c':'
    memcpy(text + length + 1, realm, c.realm_size)
    length += 1 + c.realm_size
    text[length] = c':'
    memcpy(text + length + 1, c.plan.texts[<int> TEXT_PASSWORD], password)
    return EVP_Digest(text, length + 1 + password, c.key, NULL, EVP_md5(), NULL) == 1


cdef inline bint answers(const Client* c, const uint8_t* message) noexcept nogil:
    return c.method and memcmp(message + 8, c.transaction, TRANSACTION_BYTES) == 0


# The relayed address in words; False if there is none.
cdef inline bint take_relayed(Client* c, const uint8_t* message, uint32_t size) noexcept nogil:
    cdef const uint8_t* value = find_attribute(message, size, ATTRIBUTE_XOR_RELAYED_ADDRESS, 8)
    cdef Endpoint relayed
    if value == NULL or not parse_xor_address(value, load16(value - 2), message, &relayed):
        return False
    write_address(&relayed, c.relayed)
    return True


# LIFETIME, or 0.
cdef inline uint32_t lifetime_of(const uint8_t* message, uint32_t size) noexcept nogil:
    cdef const uint8_t* value = find_attribute(message, size, ATTRIBUTE_LIFETIME, 4)
    return 0 if value == NULL else load32(value)
