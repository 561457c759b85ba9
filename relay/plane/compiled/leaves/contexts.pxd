# The certificates as TLS has them: a context for each set of names, chosen by the client's server name; which protocols
# are spoken; who may sign the certificates of clients; and session tickets, of which nothing is kept here.

from libc.stdint cimport uint8_t
from libc.string cimport memcmp, memcpy, strcmp, strlen

from relay.plane.compiled.leaves cimport openssl as tls
from relay.plane.compiled.leaves.hello cimport MAX_CLIENT_CHAIN_BYTES
from relay.plane.compiled.leaves.live cimport LIVE_CONTEXTS, calloc, count_live, free, malloc

# Whether clients are asked for a certificate, in the order of relay.plane.client_certificates.ClientCertificates.
cdef enum:
    ASK_NONE
    ASK_OPTIONAL
    ASK_REQUIRED

cdef enum:
    AUTHORITIES_DIGEST_BYTES = 32   # OpenSSL compares as many bytes of a session

cdef struct TicketKey:
    uint8_t[16] name
    uint8_t[32] cipher_key      # AES-256-CBC
    uint8_t[32] mac_key         # HMAC-SHA256

# The first makes tickets, both open them.
cdef struct TicketKeys:
    TicketKey current
    TicketKey previous
    bint has_current
    bint has_previous

# What the issuer says of a certificate, for clients that ask for it (OCSP stapling, RFC 6066 section 8). The certificate
# belongs to its context.
cdef struct Staple:
    const tls.X509* certificate
    char* answer
    size_t size

# One set of certificates. It lives while it is current or a handshake uses it.
cdef struct Contexts:
    int count
    int references
    bint retired
    tls.SSL_CTX** contexts
    char** names                # of each, one: lower case, exact or "*."
    tls.SSL_CTX* fallback       # the first certificate's
    uint8_t[AUTHORITIES_DIGEST_BYTES] authorities   # who may sign certificates of clients: a digest
    int staple_count
    Staple* staples


cdef inline void free_contexts(Contexts* contexts) noexcept nogil:
    cdef int i
    for i in range(contexts.count):
        tls.SSL_CTX_free(contexts.contexts[i])
        count_live(LIVE_CONTEXTS, -1)
        free(contexts.names[i])
    for i in range(contexts.staple_count):
        free(contexts.staples[i].answer)
    free(contexts.staples)
    free(contexts.contexts)
    free(contexts.names)
    free(contexts)


# Exact names first, then a wildcard of one label, then the first certificate.
cdef inline int on_server_name(tls.SSL* ssl, int* alert, void* argument) noexcept nogil:
    cdef Contexts* contexts = <Contexts*> argument
    cdef const char* asked = tls.SSL_get_servername(ssl, tls.TLSEXT_NAMETYPE_host_name)
    cdef char[256] name
    cdef const char* rest
    cdef int i
    if asked == NULL:
        return tls.SSL_TLSEXT_ERR_NOACK
    if not lower(asked, name):
        return tls.SSL_TLSEXT_ERR_ALERT_FATAL
    rest = name
    while rest[0] and rest[0] != c'.':
        rest += 1
    for i in range(contexts.count):
        if strcmp(contexts.names[i], name) == 0:
            tls.SSL_set_SSL_CTX(ssl, contexts.contexts[i])
            return tls.SSL_TLSEXT_ERR_OK
    for i in range(contexts.count):
        if contexts.names[i][0] == c'*' and rest[0] and strcmp(contexts.names[i] + 1, rest) == 0:
            tls.SSL_set_SSL_CTX(ssl, contexts.contexts[i])
            return tls.SSL_TLSEXT_ERR_OK
    return tls.SSL_TLSEXT_ERR_OK


# The client asks for OCSP. OpenSSL has chosen the certificate by then, and frees the copy.
cdef inline int on_status(tls.SSL* ssl, void* argument) noexcept nogil:
    cdef Contexts* contexts = <Contexts*> argument
    cdef const tls.X509* chosen = tls.SSL_get_certificate(ssl)
    cdef void* copy
    cdef int i
    for i in range(contexts.staple_count):
        if contexts.staples[i].certificate == chosen:
            copy = tls.OPENSSL_memdup(contexts.staples[i].answer, contexts.staples[i].size)
            if copy == NULL:
                break
            tls.SSL_set_tlsext_status_ocsp_resp(ssl, copy, <long> contexts.staples[i].size)
            return tls.SSL_TLSEXT_ERR_OK
    return tls.SSL_TLSEXT_ERR_NOACK


# Lower case without the last dot; False if it is too long to be a name, or not ASCII.
cdef inline bint lower(const char* text, char* name) noexcept nogil:
    cdef size_t i, size = strlen(text)
    if size and text[size - 1] == c'.':
        size -= 1
    if size > 255:
        return False
    for i in range(size):
        if text[i] & 0x80:
            return False
        name[i] = text[i] + 32 if 65 <= text[i] <= 90 else text[i]
    name[size] = 0
    return True


# Strict: a client that offers protocols and none of ours is refused. h2 is never offered.
cdef inline int on_alpn(
    tls.SSL* ssl, const unsigned char** out, unsigned char* out_size, const unsigned char* offered, unsigned int size,
    void* argument,
) noexcept nogil:
    cdef unsigned char* chosen
    cdef const unsigned char* ours = b"\x08http/1.1\x09stun.turn\x12stun.nat-discovery"
    if tls.SSL_select_next_proto(&chosen, out_size, ours, 38, offered, size) != tls.OPENSSL_NPN_NEGOTIATED:
        return tls.SSL_TLSEXT_ERR_ALERT_FATAL
    out[0] = chosen
    return tls.SSL_TLSEXT_ERR_OK


# Makes (making 1) or opens a session ticket (RFC 5077). 0: not ours, a full handshake; 2: opened, and a new one is due.
cdef inline int on_ticket(
    tls.SSL* ssl, unsigned char* name, unsigned char* iv, tls.EVP_CIPHER_CTX* cipher, tls.EVP_MAC_CTX* mac, int making
) noexcept nogil:
    cdef TicketKeys* keys = <TicketKeys*> tls.SSL_CTX_get_app_data(tls.SSL_get_SSL_CTX(ssl))
    cdef TicketKey* key = &keys.current
    cdef tls.OSSL_PARAM[3] parameters
    cdef int opened = 1
    if making:
        if tls.RAND_bytes(iv, 16) != 1:
            return -1
        memcpy(name, key.name, 16)
    elif memcmp(name, key.name, 16) != 0:
        key = &keys.previous
        opened = 2
        if not keys.has_previous or memcmp(name, key.name, 16) != 0:
            return 0
    parameters[0] = tls.OSSL_PARAM_construct_octet_string(b"key", key.mac_key, 32)
    parameters[1] = tls.OSSL_PARAM_construct_utf8_string(b"digest", <char*> b"SHA256", 0)
    parameters[2] = tls.OSSL_PARAM_construct_end()
    if tls.EVP_MAC_CTX_set_params(mac, parameters) != 1:
        return -1
    if making:
        return tls.EVP_EncryptInit_ex(cipher, tls.EVP_aes_256_cbc(), NULL, key.cipher_key, iv)
    return opened if tls.EVP_DecryptInit_ex(cipher, tls.EVP_aes_256_cbc(), NULL, key.cipher_key, iv) == 1 else -1


# The name in a ClientHello, as ``lower`` has it, empty without one; False if it cannot be one.
cdef inline bint read_asked_name(tls.SSL* ssl, char* name) noexcept nogil:
    cdef const unsigned char* data = NULL
    cdef size_t size = 0
    cdef char[256] asked
    name[0] = 0
    if not tls.SSL_client_hello_get0_ext(ssl, tls.TLSEXT_TYPE_server_name, &data, &size):
        return True
    # A list of names, of which there is one (RFC 6066 section 3): its length, the name's type, the name's length.
    if size < 5 or size > 5 + 255 or data[2] != tls.TLSEXT_NAMETYPE_host_name:
        return False
    memcpy(asked, data + 5, size - 5)
    asked[size - 5] = 0
    return lower(asked, name)


# Asks the client for a certificate. A session goes on only where the same is asked, and the same authorities count. Else
# it could come from a listener that asks for less, or outlive the trust in its authority. Returns False without memory.
cdef inline bint ask_for_certificate(tls.SSL* ssl, const Contexts* contexts, uint8_t asks) noexcept nogil:
    cdef uint8_t[AUTHORITIES_DIGEST_BYTES] context
    cdef int mode = tls.SSL_VERIFY_PEER
    if asks == ASK_NONE:
        return True
    if asks == ASK_REQUIRED:
        mode |= tls.SSL_VERIFY_FAIL_IF_NO_PEER_CERT
    memcpy(context, contexts.authorities, AUTHORITIES_DIGEST_BYTES)
    context[0] ^= asks
    tls.SSL_set_verify(ssl, mode, NULL)
    return tls.SSL_set_session_id_context(ssl, <const unsigned char*> context, AUTHORITIES_DIGEST_BYTES) == 1


# A session keeps the certificate that its client has shown, and must not outlive it.
cdef inline bint has_ended(tls.X509* shown) noexcept nogil:
    return shown != NULL and tls.X509_cmp_current_time(tls.X509_get0_notAfter(shown)) <= 0


# A ticket has been opened. A session of TLS 1.2 belongs to the name that it began with, and goes on under no other (RFC
# 6066 section 3): else the client would be taken to where the old name leads. TLS 1.3 hears the name each time anew.
cdef inline int on_opened_ticket(
    tls.SSL* ssl, tls.SSL_SESSION* session, const unsigned char* key_name, size_t key_name_size, int status,
    void* argument,
) noexcept nogil:
    cdef const char* began_with
    cdef char[256] before
    cdef char[256] asked
    if status != tls.SSL_TICKET_SUCCESS and status != tls.SSL_TICKET_SUCCESS_RENEW:
        return tls.SSL_TICKET_RETURN_IGNORE_RENEW
    if has_ended(tls.SSL_SESSION_get0_peer(session)):
        return tls.SSL_TICKET_RETURN_IGNORE_RENEW
    if tls.SSL_SESSION_get_protocol_version(session) < tls.TLS1_3_VERSION:
        began_with = tls.SSL_SESSION_get0_hostname(session)
        before[0] = 0
        if began_with != NULL and not lower(began_with, before):
            return tls.SSL_TICKET_RETURN_IGNORE_RENEW
        if not read_asked_name(ssl, asked) or strcmp(before, asked) != 0:
            return tls.SSL_TICKET_RETURN_IGNORE_RENEW
    return tls.SSL_TICKET_RETURN_USE if status == tls.SSL_TICKET_SUCCESS else tls.SSL_TICKET_RETURN_USE_RENEW


cdef inline int no_pass_phrase(char* buffer, int size, int writing, void* argument) noexcept nogil:
    return 0


cdef inline object text_of(const char* text):
    return "" if text == NULL else (<bytes> text).decode()


cdef inline object last_error():
    cdef unsigned long error = tls.ERR_get_error()
    tls.ERR_clear_error()
    return text_of(tls.ERR_reason_error_string(error)) or "unreadable"


cdef inline tls.SSL_CTX* new_context(TicketKeys* ticket_keys) except NULL:
    cdef tls.SSL_CTX* context = tls.SSL_CTX_new(tls.TLS_server_method())
    if context == NULL:
        raise MemoryError
    tls.SSL_CTX_set_min_proto_version(context, tls.TLS1_2_VERSION)
    # A client that ends in TCP and not in TLS has ended like any other, and still gets its HTTP response.
    tls.SSL_CTX_set_options(
        context,
        tls.SSL_OP_NO_RENEGOTIATION | tls.SSL_OP_NO_COMPRESSION | tls.SSL_OP_IGNORE_UNEXPECTED_EOF
        | tls.SSL_OP_CIPHER_SERVER_PREFERENCE | tls.SSL_OP_PRIORITIZE_CHACHA,
    )
    # A refused write is repeated from wherever it lies by then.
    tls.SSL_CTX_set_mode(context, tls.SSL_MODE_RELEASE_BUFFERS | tls.SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER)
    tls.SSL_CTX_set_read_ahead(context, 1)
    # A client comes back with one connection at a time: a second ticket would only cost another encryption.
    tls.SSL_CTX_set_num_tickets(context, 1)
    # Tickets are all that comes back: a session kept here would be memory for nothing.
    tls.SSL_CTX_set_session_cache_mode(context, tls.SSL_SESS_CACHE_OFF)
    # The shorter hash and the shorter key first: safe, and cheaper for each login and each packet. A client that has no
    # AES in hardware, and says so by its own order, gets ChaCha20.
    tls.SSL_CTX_set_cipher_list(context, b"ECDHE+AES128+AESGCM:ECDHE+AESGCM:ECDHE+CHACHA20")
    tls.SSL_CTX_set_ciphersuites(
        context, b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
    )
    # What Mozilla recommends ("intermediate"), the cheapest first; with its post-quantum twin where OpenSSL (3.5) has it.
    if tls.SSL_CTX_set1_groups_list(context, b"X25519MLKEM768:X25519:P-256:P-384") != 1:
        tls.ERR_clear_error()
        tls.SSL_CTX_set1_groups_list(context, b"X25519:P-256:P-384")
    tls.SSL_CTX_set_alpn_select_cb(context, on_alpn, NULL)
    tls.SSL_CTX_set_app_data(context, ticket_keys)
    tls.SSL_CTX_set_tlsext_ticket_key_evp_cb(context, on_ticket)
    tls.SSL_CTX_set_session_ticket_cb(context, NULL, on_opened_ticket, NULL)
    return context


# The leaf of a PEM text, and after it the chain. OpenSSL keeps one for each kind of key.
cdef inline bint use_chain(tls.SSL_CTX* context, tls.BIO* text) noexcept nogil:
    cdef tls.X509* certificate = tls.PEM_read_bio_X509_AUX(text, NULL, no_pass_phrase, NULL)
    cdef bint good = certificate != NULL and tls.SSL_CTX_use_certificate(context, certificate) == 1
    tls.X509_free(certificate)
    if not good or tls.SSL_CTX_clear_chain_certs(context) != 1:
        return False
    while True:
        certificate = tls.PEM_read_bio_X509(text, NULL, no_pass_phrase, NULL)
        if certificate == NULL:
            return tls.ERR_GET_REASON(tls.ERR_peek_last_error()) == tls.PEM_R_NO_START_LINE
        if tls.SSL_CTX_add0_chain_cert(context, certificate) != 1:
            tls.X509_free(certificate)
            return False


cdef inline bint use_key(tls.SSL_CTX* context, tls.BIO* text) noexcept nogil:
    cdef tls.EVP_PKEY* key = tls.PEM_read_bio_PrivateKey(text, NULL, no_pass_phrase, NULL)
    cdef bint good = key != NULL and tls.SSL_CTX_use_PrivateKey(context, key) == 1
    tls.EVP_PKEY_free(key)
    return good and tls.SSL_CTX_check_private_key(context) == 1


cdef inline int load_certificate(tls.SSL_CTX* context, bytes chain, bytes private_key) except -1:
    cdef tls.BIO* chain_text = tls.BIO_new_mem_buf(<char*> chain, <int> len(chain))
    cdef tls.BIO* key_text = tls.BIO_new_mem_buf(<char*> private_key, <int> len(private_key))
    cdef bint good = chain_text != NULL and key_text != NULL
    tls.ERR_clear_error()
    if good:
        good = use_chain(context, chain_text)
    if good:
        tls.ERR_clear_error()   # of the end of the chain
        good = use_key(context, key_text)
    tls.BIO_free(chain_text)
    tls.BIO_free(key_text)
    if not good:
        raise ValueError(last_error())
    return 0


# Who may sign the certificates of clients (DER). One that is signed by another one is trusted itself, so that the others
# above it need not be known. A client that is asked for a certificate hears their names.
cdef inline int trust_clients(tls.SSL_CTX* context, list authorities) except -1:
    cdef bytes content
    cdef const unsigned char* data
    cdef tls.X509* authority
    cdef bint good
    for content in authorities:
        tls.ERR_clear_error()
        data = <const unsigned char*> <char*> content
        authority = tls.d2i_X509(NULL, &data, <long> len(content))
        good = (
            authority != NULL and tls.X509_STORE_add_cert(tls.SSL_CTX_get_cert_store(context), authority) == 1
            and tls.SSL_CTX_add_client_CA(context, authority) == 1
        )
        tls.X509_free(authority)
        if not good:
            raise ValueError(last_error())
    tls.X509_VERIFY_PARAM_set_flags(tls.SSL_CTX_get0_param(context), tls.X509_V_FLAG_PARTIAL_CHAIN)
    tls.SSL_CTX_set_max_cert_list(context, MAX_CLIENT_CHAIN_BYTES)
    return 0


# One context for each set of names, entered under each of its names.
cdef inline Contexts* build_contexts(
    list groups, list authorities, bytes digest, TicketKeys* ticket_keys
) except NULL:
    cdef Contexts* contexts = <Contexts*> calloc(1, sizeof(Contexts))
    cdef int total = 0
    cdef tls.SSL_CTX* context
    cdef int certificates = 0
    for names, files in groups:
        total += max(len(names), 1)
        certificates += len(files)
    if contexts == NULL:
        raise MemoryError
    contexts.contexts = <tls.SSL_CTX**> calloc(total, sizeof(tls.SSL_CTX*))
    contexts.names = <char**> calloc(total, sizeof(char*))
    contexts.staples = <Staple*> calloc(max(certificates, 1), sizeof(Staple))
    memcpy(contexts.authorities, <char*> digest, AUTHORITIES_DIGEST_BYTES)
    try:
        for names, files in groups:
            context = new_context(ticket_keys)
            for position, name in enumerate(names or [b""]):
                if position:
                    tls.SSL_CTX_up_ref(context)
                contexts.contexts[contexts.count] = context
                contexts.names[contexts.count] = copy_text(name)
                contexts.count += 1
                count_live(LIVE_CONTEXTS, 1)
            trust_clients(context, authorities)
            for chain, private_key, staple in files:
                load_certificate(context, chain, private_key)
                keep_staple(contexts, context, staple)
    except BaseException:
        free_contexts(contexts)
        raise
    contexts.fallback = contexts.contexts[0]
    tls.SSL_CTX_set_tlsext_servername_callback(contexts.fallback, on_server_name)
    tls.SSL_CTX_set_tlsext_servername_arg(contexts.fallback, contexts)
    return contexts


# The staple of the certificate that the context was given last; an empty one is none.
cdef inline int keep_staple(Contexts* contexts, tls.SSL_CTX* context, bytes answer) except -1:
    cdef Staple* staple = &contexts.staples[contexts.staple_count]
    if not answer:
        return 0
    staple.answer = copy_text(answer)
    staple.size = len(answer)
    staple.certificate = tls.SSL_CTX_get0_certificate(context)
    contexts.staple_count += 1
    tls.SSL_CTX_set_tlsext_status_cb(context, on_status)
    tls.SSL_CTX_set_tlsext_status_arg(context, contexts)
    return 0


cdef inline char* copy_text(bytes text) except NULL:
    cdef char* copy = <char*> malloc(len(text) + 1)
    if copy == NULL:
        raise MemoryError
    memcpy(copy, <char*> text, len(text) + 1)
    return copy
