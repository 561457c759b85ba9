# The part of OpenSSL 3 that the data plane uses.

from libc.stdint cimport uint64_t

cdef extern from "<openssl/evp.h>" nogil:
    ctypedef struct EVP_CIPHER:
        pass
    ctypedef struct EVP_CIPHER_CTX:
        pass
    ctypedef struct EVP_MAC_CTX:
        pass
    ctypedef struct EVP_PKEY:
        pass
    ctypedef struct ENGINE:
        pass
    ctypedef struct OSSL_PARAM:
        pass
    const EVP_CIPHER* EVP_aes_256_cbc()
    void EVP_PKEY_free(EVP_PKEY* key)
    int EVP_EncryptInit_ex(
        EVP_CIPHER_CTX* context, const EVP_CIPHER* cipher, ENGINE* engine, const unsigned char* key,
        const unsigned char* iv)
    int EVP_DecryptInit_ex(
        EVP_CIPHER_CTX* context, const EVP_CIPHER* cipher, ENGINE* engine, const unsigned char* key,
        const unsigned char* iv)
    int EVP_MAC_CTX_set_params(EVP_MAC_CTX* context, const OSSL_PARAM* parameters)

cdef extern from "<openssl/params.h>" nogil:
    OSSL_PARAM OSSL_PARAM_construct_octet_string(const char* key, void* data, size_t size)
    OSSL_PARAM OSSL_PARAM_construct_utf8_string(const char* key, char* data, size_t size)
    OSSL_PARAM OSSL_PARAM_construct_end()

cdef extern from "<openssl/rand.h>" nogil:
    int RAND_bytes(unsigned char* data, int size)

cdef extern from "<openssl/ssl.h>" nogil:
    ctypedef struct SSL:
        pass
    ctypedef struct SSL_CTX:
        pass
    ctypedef struct SSL_METHOD:
        pass
    ctypedef struct SSL_SESSION:
        pass
    ctypedef struct BIO:
        pass
    ctypedef struct X509:
        pass
    ctypedef struct X509_STORE:
        pass
    ctypedef struct X509_STORE_CTX:
        pass
    ctypedef struct X509_VERIFY_PARAM:
        pass
    ctypedef struct ASN1_TIME:
        pass
    enum:
        SSL_VERIFY_PEER, SSL_VERIFY_FAIL_IF_NO_PEER_CERT
        SSL_R_CERTIFICATE_VERIFY_FAILED, SSL_R_EXCESSIVE_MESSAGE_SIZE
        SSL_ERROR_NONE, SSL_ERROR_SSL, SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE, SSL_ERROR_SYSCALL
        SSL_ERROR_ZERO_RETURN
        SSL3_RT_HEADER, SSL_RECEIVED_SHUTDOWN
        TLS1_3_VERSION, TLSEXT_TYPE_server_name
        SSL_TICKET_SUCCESS, SSL_TICKET_SUCCESS_RENEW, SSL_TICKET_RETURN_IGNORE_RENEW, SSL_TICKET_RETURN_USE
        SSL_TICKET_RETURN_USE_RENEW
        TLS1_2_VERSION
        SSL_TLSEXT_ERR_OK, SSL_TLSEXT_ERR_ALERT_FATAL, SSL_TLSEXT_ERR_NOACK
        TLSEXT_NAMETYPE_host_name
        OPENSSL_NPN_NEGOTIATED
    uint64_t SSL_OP_NO_RENEGOTIATION
    uint64_t SSL_OP_NO_COMPRESSION
    uint64_t SSL_OP_IGNORE_UNEXPECTED_EOF
    uint64_t SSL_OP_CIPHER_SERVER_PREFERENCE
    uint64_t SSL_OP_PRIORITIZE_CHACHA
    long SSL_SESS_CACHE_OFF
    long SSL_MODE_RELEASE_BUFFERS
    long SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER
    const SSL_METHOD* TLS_server_method()
    SSL_CTX* SSL_CTX_new(const SSL_METHOD* method)
    int SSL_CTX_up_ref(SSL_CTX* context)
    void SSL_CTX_free(SSL_CTX* context)
    uint64_t SSL_CTX_set_options(SSL_CTX* context, uint64_t options)
    long SSL_CTX_set_mode(SSL_CTX* context, long mode)
    int SSL_CTX_set_num_tickets(SSL_CTX* context, size_t count)
    void SSL_CTX_set_read_ahead(SSL_CTX* context, int yes)
    long SSL_CTX_set_min_proto_version(SSL_CTX* context, int version)
    long SSL_CTX_set_session_cache_mode(SSL_CTX* context, long mode)
    int SSL_CTX_set_cipher_list(SSL_CTX* context, const char* ciphers)
    int SSL_CTX_set_ciphersuites(SSL_CTX* context, const char* ciphers)
    int SSL_CTX_set1_groups_list(SSL_CTX* context, const char* groups)
    int SSL_CTX_use_certificate(SSL_CTX* context, X509* certificate)
    int SSL_CTX_clear_chain_certs(SSL_CTX* context)
    int SSL_CTX_add0_chain_cert(SSL_CTX* context, X509* certificate)
    int SSL_CTX_use_PrivateKey(SSL_CTX* context, EVP_PKEY* key)
    int SSL_CTX_check_private_key(const SSL_CTX* context)
    long SSL_CTX_set_tlsext_servername_callback(
        SSL_CTX* context, int (*callback)(SSL*, int*, void*) noexcept nogil)
    long SSL_CTX_set_tlsext_servername_arg(SSL_CTX* context, void* argument)
    long SSL_CTX_set_tlsext_status_cb(SSL_CTX* context, int (*callback)(SSL*, void*) noexcept nogil)
    long SSL_CTX_set_tlsext_status_arg(SSL_CTX* context, void* argument)
    long SSL_set_tlsext_status_ocsp_resp(SSL* ssl, void* answer, long size)
    X509* SSL_CTX_get0_certificate(const SSL_CTX* context)
    X509_STORE* SSL_CTX_get_cert_store(const SSL_CTX* context)
    X509_VERIFY_PARAM* SSL_CTX_get0_param(SSL_CTX* context)
    int SSL_CTX_add_client_CA(SSL_CTX* context, X509* certificate)
    long SSL_CTX_set_max_cert_list(SSL_CTX* context, long size)
    void SSL_set_verify(SSL* ssl, int mode, int (*callback)(int, X509_STORE_CTX*) noexcept nogil)
    int SSL_set_session_id_context(SSL* ssl, const unsigned char* context, unsigned int size)
    X509* SSL_get0_peer_certificate(const SSL* ssl)
    long SSL_get_verify_result(const SSL* ssl)
    X509* SSL_get_certificate(const SSL* ssl)
    void SSL_CTX_set_alpn_select_cb(
        SSL_CTX* context,
        int (*callback)(SSL*, const unsigned char**, unsigned char*, const unsigned char*, unsigned int, void*)
        noexcept nogil,
        void* argument)
    int SSL_select_next_proto(
        unsigned char** out, unsigned char* out_size, const unsigned char* server, unsigned int server_size,
        const unsigned char* client, unsigned int client_size)
    int SSL_CTX_set_tlsext_ticket_key_evp_cb(
        SSL_CTX* context,
        int (*callback)(SSL*, unsigned char*, unsigned char*, EVP_CIPHER_CTX*, EVP_MAC_CTX*, int) noexcept nogil)
    void SSL_CTX_set_app_data(SSL_CTX* context, void* data)
    void* SSL_CTX_get_app_data(SSL_CTX* context)
    SSL_CTX* SSL_get_SSL_CTX(const SSL* ssl)
    SSL* SSL_new(SSL_CTX* context)
    void SSL_free(SSL* ssl)
    int SSL_free_buffers(SSL* ssl)
    long SSL_set_mode(SSL* ssl, long mode)
    long SSL_clear_mode(SSL* ssl, long mode)
    void SSL_set_bio(SSL* ssl, BIO* reads, BIO* writes)
    void SSL_set_accept_state(SSL* ssl)
    SSL_CTX* SSL_set_SSL_CTX(SSL* ssl, SSL_CTX* context)
    const char* SSL_get_servername(const SSL* ssl, int kind)
    int SSL_do_handshake(SSL* ssl)
    int SSL_version(const SSL* ssl)
    void SSL_set_shutdown(SSL* ssl, int mode)
    void SSL_set_msg_callback(
        SSL* ssl, void (*callback)(int, int, int, const void*, size_t, SSL*, void*) noexcept nogil)
    void SSL_set_msg_callback_arg(SSL* ssl, void* argument)
    int SSL_client_hello_get0_ext(SSL* ssl, unsigned int kind, const unsigned char** data, size_t* size)
    const char* SSL_SESSION_get0_hostname(const SSL_SESSION* session)
    int SSL_SESSION_get_protocol_version(const SSL_SESSION* session)
    X509* SSL_SESSION_get0_peer(SSL_SESSION* session)
    int SSL_CTX_set_session_ticket_cb(
        SSL_CTX* context, int (*make)(SSL*, void*) noexcept nogil,
        int (*open)(SSL*, SSL_SESSION*, const unsigned char*, size_t, int, void*) noexcept nogil, void* argument)
    int SSL_is_init_finished(const SSL* ssl)
    int SSL_read(SSL* ssl, void* data, int size)
    int SSL_write(SSL* ssl, const void* data, int size)
    int SSL_has_pending(const SSL* ssl)
    int SSL_shutdown(SSL* ssl)
    int SSL_get_error(const SSL* ssl, int result)
    const char* SSL_get_version(const SSL* ssl)
    void SSL_get0_alpn_selected(const SSL* ssl, const unsigned char** data, unsigned int* size)

cdef extern from "<openssl/crypto.h>" nogil:
    void* OPENSSL_memdup(const void* data, size_t size)

cdef extern from "<openssl/x509.h>" nogil:
    void X509_free(X509* certificate)
    X509* d2i_X509(X509** out, const unsigned char** data, long size)
    int i2d_X509(const X509* certificate, unsigned char** out)
    const ASN1_TIME* X509_get0_notAfter(const X509* certificate)
    int X509_cmp_current_time(const ASN1_TIME* time)

cdef extern from "<openssl/x509_vfy.h>" nogil:
    unsigned long X509_V_FLAG_PARTIAL_CHAIN
    int X509_STORE_add_cert(X509_STORE* store, X509* certificate)
    int X509_VERIFY_PARAM_set_flags(X509_VERIFY_PARAM* parameters, unsigned long flags)
    const char* X509_verify_cert_error_string(long code)

cdef extern from "<openssl/pem.h>" nogil:
    enum:
        PEM_R_NO_START_LINE
    X509* PEM_read_bio_X509(
        BIO* bio, X509** out, int (*pass_phrase)(char*, int, int, void*) noexcept nogil, void* argument)
    X509* PEM_read_bio_X509_AUX(
        BIO* bio, X509** out, int (*pass_phrase)(char*, int, int, void*) noexcept nogil, void* argument)
    EVP_PKEY* PEM_read_bio_PrivateKey(
        BIO* bio, EVP_PKEY** out, int (*pass_phrase)(char*, int, int, void*) noexcept nogil, void* argument)

cdef extern from "<openssl/bio.h>" nogil:
    ctypedef struct BIO_METHOD:
        pass
    enum:
        BIO_TYPE_SOURCE_SINK, BIO_CTRL_EOF, BIO_CTRL_FLUSH
    int BIO_get_new_index()
    BIO_METHOD* BIO_meth_new(int kind, const char* name)
    int BIO_meth_set_read(BIO_METHOD* method, int (*read)(BIO*, char*, int) noexcept nogil)
    int BIO_meth_set_write(BIO_METHOD* method, int (*write)(BIO*, const char*, int) noexcept nogil)
    int BIO_meth_set_ctrl(BIO_METHOD* method, long (*control)(BIO*, int, long, void*) noexcept nogil)
    BIO* BIO_new(const BIO_METHOD* method)
    BIO* BIO_new_mem_buf(const void* data, int size)
    int BIO_free(BIO* bio)
    void BIO_set_data(BIO* bio, void* data)
    void* BIO_get_data(BIO* bio)
    void BIO_set_init(BIO* bio, int init)
    void BIO_set_retry_read(BIO* bio)
    void BIO_set_retry_write(BIO* bio)
    void BIO_clear_retry_flags(BIO* bio)

cdef extern from "<openssl/err.h>" nogil:
    unsigned long ERR_get_error()
    unsigned long ERR_peek_error()
    unsigned long ERR_peek_last_error()
    enum:
        ERR_LIB_SSL
    int ERR_GET_LIB(unsigned long error)
    int ERR_GET_REASON(unsigned long error)
    void ERR_clear_error()
    const char* ERR_reason_error_string(unsigned long error)
