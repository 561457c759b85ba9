# A debug build (RELAY_DEBUG=1) counts what is alive, so that tests can assert that nothing is left at the end, and can
# be told to be out of memory. In any other these are the C library's functions and nothing at all.

from libc.stdint cimport int64_t

cdef enum Live:
    LIVE_CONNECTIONS            # whose socket is open
    LIVE_SESSIONS               # of TLS
    LIVE_CONTEXTS               # of TLS: one for each name of a certificate; of SRTP: two for each direction of a stream
    LIVE_SOCKETS                # of clients, flows and pipes, until they are closed or Python's
    LIVE_BUFFERS                # blocks of memory; last, as the C code below has it
    LIVE_KINDS

cdef extern from *:
    """
    #include <stdlib.h>
    #ifdef RELAY_DEBUG
    enum { RELAY_LIVE_BUFFERS = 4, RELAY_LIVE_KINDS = 5 };
    static int64_t relay_live[RELAY_LIVE_KINDS];
    static inline void relay_count(int kind, int64_t more) {
        __atomic_add_fetch(&relay_live[kind], more, __ATOMIC_RELAXED);
    }
    static inline int64_t relay_alive(int kind) { return __atomic_load_n(&relay_live[kind], __ATOMIC_RELAXED); }
    static int64_t relay_blocks_left = -1;
    static inline void relay_leave(int64_t blocks) { relay_blocks_left = blocks; }
    static inline int relay_has_memory(void) { return relay_blocks_left < 0 || (relay_blocks_left && relay_blocks_left--); }
    static inline void *relay_counted(void *taken) { relay_count(RELAY_LIVE_BUFFERS, taken != NULL); return taken; }
    static inline void *relay_malloc(size_t size) { return relay_has_memory() ? relay_counted(malloc(size)) : NULL; }
    static inline void *relay_calloc(size_t count, size_t size) {
        return relay_has_memory() ? relay_counted(calloc(count, size)) : NULL;
    }
    static inline void *relay_realloc(void *old, size_t size) {
        if (!relay_has_memory()) return NULL;
        return old ? realloc(old, size) : relay_counted(malloc(size));
    }
    static inline void relay_free(void *taken) { relay_count(RELAY_LIVE_BUFFERS, -(taken != NULL)); free(taken); }
    #define RELAY_COUNTS 1
    #else
    #define RELAY_COUNTS 0
    #define relay_count(kind, more) ((void) (more))
    #define relay_alive(kind) ((void) (kind), 0)
    #define relay_leave(blocks) ((void) (blocks))
    #define relay_malloc malloc
    #define relay_calloc calloc
    #define relay_realloc realloc
    #define relay_free free
    #endif
    """
    bint RELAY_COUNTS
    void count_live "relay_count"(Live kind, int64_t more) noexcept nogil
    int64_t alive "relay_alive"(Live kind) noexcept nogil
    # So many more blocks may be taken, in this module and by one thread; -1 for as many as there are.
    void leave_blocks "relay_leave"(int64_t blocks) noexcept nogil
    void* malloc "relay_malloc"(size_t size) noexcept nogil
    void* calloc "relay_calloc"(size_t count, size_t size) noexcept nogil
    void* realloc "relay_realloc"(void* old, size_t size) noexcept nogil
    void free "relay_free"(void* taken) noexcept nogil
