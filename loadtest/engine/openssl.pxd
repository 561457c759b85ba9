# The part of OpenSSL 3 that a client and SRTP use, beyond what the data plane uses already.

from relay.plane.compiled.leaves.openssl cimport (
    ENGINE, EVP_CIPHER, EVP_CIPHER_CTX, EVP_MAC_CTX, OSSL_PARAM, SSL, SSL_CTX, SSL_METHOD,
)

cdef extern from "<openssl/evp.h>" nogil:
    ctypedef struct EVP_MAC:
        pass
    ctypedef struct EVP_MD:
        pass
    const EVP_CIPHER* EVP_aes_128_ctr()
    EVP_CIPHER_CTX* EVP_CIPHER_CTX_new()
    void EVP_CIPHER_CTX_free(EVP_CIPHER_CTX* context)
    int EVP_EncryptUpdate(
        EVP_CIPHER_CTX* context, unsigned char* out, int* out_size, const unsigned char* data, int size)
    EVP_MAC* EVP_MAC_fetch(void* library, const char* algorithm, const char* properties)
    void EVP_MAC_free(EVP_MAC* mac)
    EVP_MAC_CTX* EVP_MAC_CTX_new(EVP_MAC* mac)
    void EVP_MAC_CTX_free(EVP_MAC_CTX* context)
    int EVP_MAC_init(
        EVP_MAC_CTX* context, const unsigned char* key, size_t key_size, const OSSL_PARAM* parameters)
    int EVP_MAC_update(EVP_MAC_CTX* context, const unsigned char* data, size_t size)
    int EVP_MAC_final(EVP_MAC_CTX* context, unsigned char* out, size_t* out_size, size_t room)
    const EVP_MD* EVP_md5()
    int EVP_Digest(
        const void* data, size_t size, unsigned char* out, unsigned int* out_size, const EVP_MD* kind, ENGINE* engine)

cdef extern from "<openssl/crypto.h>" nogil:
    int CRYPTO_memcmp(const void* one, const void* other, size_t size)

cdef extern from "<openssl/ssl.h>" nogil:
    enum:
        SSL_VERIFY_NONE, SSL_VERIFY_PEER
    long SSL_MODE_ENABLE_PARTIAL_WRITE
    const SSL_METHOD* TLS_client_method()
    long SSL_CTX_set_max_proto_version(SSL_CTX* context, int version)
    const char* SSL_get_cipher_name(const SSL* ssl)
    void SSL_CTX_set_verify(SSL_CTX* context, int mode, void* callback)
    int SSL_CTX_load_verify_locations(SSL_CTX* context, const char* file, const char* folder)
    long SSL_set_tlsext_host_name(SSL* ssl, const char* name)
    int SSL_set1_host(SSL* ssl, const char* name)
    int SSL_set_fd(SSL* ssl, int fd)
    void SSL_set_connect_state(SSL* ssl)
    int SSL_set_alpn_protos(SSL* ssl, const unsigned char* protocols, unsigned int size)
    long SSL_get_verify_result(const SSL* ssl)

cdef extern from "<openssl/x509.h>" nogil:
    enum:
        X509_V_OK
    const char* X509_verify_cert_error_string(long error)
