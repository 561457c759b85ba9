# The data dictionary of the packet engine: what a client, a stream and the thread that serves them are made of. Only that
# thread writes here once it was given them, except for what is said to be Python's.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from loadtest.engine.carriers cimport Carrier
from loadtest.engine.heap cimport Heap
from loadtest.engine.openssl cimport EVP_MAC
from loadtest.engine.srtp cimport Srtp
from loadtest.engine.windows cimport Window
from relay.plane.compiled.leaves.buffer cimport Buffer
from relay.plane.compiled.leaves.capsule cimport Capsules
from relay.plane.compiled.leaves.openssl cimport EVP_MAC_CTX, SSL, SSL_CTX
from relay.plane.compiled.leaves.posix cimport epoll_event
from relay.plane.compiled.leaves.ring cimport Ring

cdef enum:
    EVENTS_A_TURN = 256
    SENDS_A_TURN = 64           # before what has come is looked at
    # One read of TLS gives a record at most; what is left of it waits with its client.
    SCRATCH_BYTES = 16640
    # Whatever a server sends is shorter, but for a head of HTTP, which proxies make long.
    MAX_WAITING_IN = 65536
    MAX_HEAD_BYTES = 16384
    # What a client keeps while the server does not read: 1.7 s of G.711. Packets beyond it are not sent.
    MAX_WAITING_OUT = 16384
    MAX_PACKET_BYTES = 1400     # of SRTP: what one datagram carries across an Ethernet
    MAX_PEERS = 8
    FIRST_CHANNEL = 0x4000
    SOCKADDR_BYTES = 28         # of sockaddr_in6
    REALM_BYTES = 128           # RFC 8489 allows 763; more than any server's
    NONCE_BYTES = 256
    KEY_BYTES = 16              # MD5, of a long-term credential
    TRANSACTION_BYTES = 12
    WORDS_BYTES = 128
    ADDRESS_BYTES = 56          # of an IPv6 address in words, in brackets, with a port
    VALUES = 11
    # Of streams that go on, in one window; the next window goes on after them. Copying this many takes less than 1 ms.
    MAX_SNAPSHOTS = 4096
    # For happenings that a client may have more than once. Others have a place of their own.
    SPARE_HAPPENINGS = 1024
    # Sequence numbers of a stream of which is known whether they were heard: 10 s of voice. A power of two.
    HEARD = 512
    HEARD_WORDS = 8
    STALL_US = 200000

# The upper byte of what epoll gives back; the rest is a number.
cdef enum Ready:
    ON_COMMAND
    ON_CLIENT

# In the order of loadtest.engine.engine.Phase.
cdef enum Phase:
    PHASE_CONNECTING
    PHASE_PROXY                 # CONNECT was sent
    PHASE_TLS
    PHASE_UPGRADE
    PHASE_ALLOCATE              # or ``open``, on a session
    PHASE_BIND
    PHASE_READY
    PHASE_ENDING                # has said that it goes
    PHASE_ENDED                 # is freed at the end of the turn
    PHASES

# In the order of loadtest.engine.engine.Cause.
cdef enum Cause:
    CAUSE_NONE                  # it was asked to end
    CAUSE_RESOURCES             # no socket, no memory; the code is an errno
    CAUSE_CONNECTION            # refused, reset, unreachable; the code is an errno
    CAUSE_PROXY                 # the code is the HTTP status
    CAUSE_VERIFY                # the certificate; the code is X.509's
    CAUSE_TLS
    CAUSE_UPGRADE               # the code is the HTTP status
    CAUSE_STUN                  # the code is that of the error response
    CAUSE_SESSION               # an error message of media.v1
    CAUSE_TIMEOUT
    CAUSE_CLOSED                # by the server
    CAUSE_BROKEN                # what came is none of the protocol

cdef enum HappeningKind:
    OPENED                      # words: relayed address, version and cipher of TLS. values: us of each phase, then when
    ENDED                       # words: more of the cause
    SILENCED                    # values: the totals of a stream
    MOVED                       # words: the new relayed address of a session

# For Python.
cdef struct Happening:
    HappeningKind kind
    uint32_t number             # of the client or the stream
    Phase phase                 # in which it ended
    Cause cause
    int32_t code
    int64_t[VALUES] values
    char[WORDS_BYTES] words

# Texts of a plan. They come after it, one after the other, each with a zero at its end.
cdef enum Text:
    TEXT_SERVER_NAME            # whom the certificate is to name
    TEXT_SNI                    # the same; empty if it is an address (RFC 6066 section 3)
    TEXT_USERNAME
    TEXT_PASSWORD
    TEXT_PROXY                  # the CONNECT request, empty without a proxy
    TEXT_UPGRADE                # the HTTP request of carriers that begin with one
    TEXT_OPEN                   # the first message of a session
    TEXTS

# A socket address of Linux, of IPv4 or IPv6.
cdef struct Endpoint:
    uint8_t[SOCKADDR_BYTES] octets
    uint32_t size

# What a client is to do; it does not change.
cdef struct Plan:
    Carrier carrier
    SSL_CTX* context            # a reference of its own, NULL without TLS
    bint verifies
    Endpoint server             # or the proxy; of a peer, its own address
    bint ipv6                   # what the relayed address is to be
    bint reflects               # a peer: what comes goes back, and is not judged
    uint32_t lifetime_s         # that is asked for; 0: the server's default
    int64_t patience_us         # until it must be ready
    int64_t rebind_us           # from one ChannelBind of a peer to the next
    uint32_t[TEXTS] sizes
    char* texts[TEXTS]

cdef struct Peer:
    Endpoint address
    bint bound
    int64_t due_us              # when it is to be bound again

cdef struct Client:
    Client* next_ended
    uint32_t number
    uint64_t serial             # of all clients, from 1: a number is given again
    Phase phase
    int fd
    SSL* tls
    Plan* plan
    bint waits_for_room
    bint moving                 # the server has another allocation under the port
    uint8_t challenges          # 401 and 438 since the last success
    uint8_t moves
    bint forged                 # an answer was ignored, because it did not prove that the server knows the password
    bint binding                # a session waits for ``bound``
    Buffer waiting_in           # of a frame that is not whole
    Buffer waiting_out
    Capsules capsules
    # The request that waits for its answer, one at a time.
    uint16_t method             # 0: none
    uint8_t tries
    uint8_t[TRANSACTION_BYTES] transaction
    uint32_t about              # the peer of a ChannelBind
    int64_t retry_us            # when it is sent again, or given up
    uint8_t[REALM_BYTES] realm
    uint8_t[NONCE_BYTES] nonce
    uint32_t realm_size
    uint32_t nonce_size
    uint8_t[KEY_BYTES] key
    int64_t refresh_us          # when the allocation is to be refreshed; 0: there is none
    int64_t[PHASES] began_us    # 0: not passed through
    char[ADDRESS_BYTES] relayed
    uint32_t peer_count
    Peer[MAX_PEERS] peers

cdef struct Totals:
    uint64_t sent
    uint64_t unsent
    uint64_t received
    uint64_t lost
    uint64_t late
    uint64_t duplicate
    uint64_t reordered
    uint64_t runs               # of packets in a row that were lost or late
    int64_t delay_sum_us
    int64_t delay_max_us

# What Python is shown of a stream that goes on.
cdef struct Snapshot:
    uint32_t number
    Totals totals
    int64_t jitter_us

cdef struct Stream:
    uint32_t number
    uint32_t sender             # a client
    uint32_t peer               # of it, by its place
    uint32_t receiver           # the client at which the packets are to arrive
    # 0: it did not exist. Later clients of these numbers are others.
    uint64_t sender_serial
    uint64_t receiver_serial
    uint32_t packet_bytes       # of RTP
    int64_t interval_us
    int64_t talk_us             # the mean of a talk spurt, and of a pause; 0: it never pauses
    int64_t pause_us
    int64_t late_us
    int64_t patience_us         # a packet that is not there by then is lost
    int64_t started_us
    int64_t due_us              # of the next packet: a sum of intervals, never of what the clock said
    int64_t quiet_us            # when the talk spurt ends
    bint opens_spurt
    bint stopping
    uint64_t left               # packets that are still to come; 0: without end
    uint64_t first              # index (RFC 3711 section 3.3.1) of the first packet
    uint64_t next
    uint64_t judged             # all before it are counted as received or lost
    uint64_t highest            # one more than the highest index that was heard
    bint missed                 # the last one that was judged was lost or late
    uint64_t[HEARD_WORDS] heard
    uint64_t[HEARD_WORDS] came_late
    uint32_t[HEARD] sent_ms
    bint compares               # there was a packet before, with this transit
    int64_t transit_us
    int64_t jitter_16us         # sixteenths, as RFC 3550 appendix A.8 has it
    Totals totals
    Srtp sending
    Srtp receiving

cdef enum CommandKind:
    OPEN
    CLOSE
    BIND
    TALK
    SILENCE
    SWAP
    STOP

cdef struct Command:
    Command* next
    CommandKind kind
    uint32_t number
    uint32_t limit              # of snapshots
    Endpoint address
    Client* client              # its owner's from here
    Stream* stream

cdef struct Engine:
    int epoll
    int command_fd              # Python has put commands
    int event_fd                # there are happenings for Python
    int swapped_fd              # a window was swapped
    bint stopping
    int64_t tick_us             # how often it looks, instead of being woken; 0: it is woken
    bint carried                # something was sent or received in this turn
    int64_t carried_us          # when that was last so
    int64_t now_us
    Command* commands           # pushed by Python, the last one first
    Ring happenings
    bint asked                  # Python has not been told of all
    int64_t woken_us
    uint32_t max_clients
    uint32_t max_streams
    Client** clients            # by number; NULL: free
    Stream** streams
    Client* ended
    Heap due_clients
    Heap due_streams
    uint64_t last_serial
    uint32_t first_ssrc         # stream n has this and n
    uint64_t random
    EVP_MAC* hmac
    EVP_MAC_CTX* signer         # HMAC-SHA1, for requests
    Window* window
    # Python's, between a swap and the next.
    Window* retired
    Snapshot* snapshots
    uint32_t snapshot_count
    uint32_t next_snapshot      # the number of the stream that comes first in the next window
    epoll_event[EVENTS_A_TURN] events
    uint8_t[SCRATCH_BYTES] coming
    uint8_t[2048] leaving


# SplitMix64 (Steele, Lea, Flood 2014). Unpredictable to no attacker, and different each time.
cdef inline uint64_t chance(Engine* e) noexcept nogil:
    cdef uint64_t z
    e.random += <uint64_t> 0x9E3779B97F4A7C15
    z = e.random
    z = (z ^ z >> 30) * <uint64_t> 0xBF58476D1CE4E5B9
    z = (z ^ z >> 27) * <uint64_t> 0x94D049BB133111EB
    return z ^ z >> 31
