# The data dictionary of the native packet path: what a host, an allocation and the thread that carries their packets are
# made of. Only that thread writes here, except for what is said to be Python's.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from relay.plane.compiled.leaves.posix cimport epoll_event, iovec, mmsghdr, sockaddr_in
from relay.plane.compiled.leaves.ring cimport Ring

cdef enum:
    MAX_HOSTS = 1024            # 65 are listed; the number of a host fits into 16 bits
    # A descriptor is needed for each, and Linux allows a process 2^20 of them at most.
    MAX_ALLOCATIONS = 1 << 20
    # As relay.turn.allocation has them.
    MAX_PERMISSIONS = 1024
    MAX_CHANNELS = 1024
    EVENTS_A_TURN = 256
    BATCH = 64                  # datagrams of one system call
    BURST = 8                   # of one relayed address, before others have their turn
    # The longest datagram is 65507 bytes. In front of it is room for the head of a Data indication, behind it for padding.
    HEAD_ROOM = 36
    DATAGRAM_BYTES = 65507
    SLOT_BYTES = 65600          # not a power of two, so that the first lines of two slots do not compete in the cache
    # A client keeps its messages below the path's MTU. 2 KiB is more than any has, and bounds the ring.
    MAX_REQUEST_BYTES = 2048
    REQUEST_RING = 512          # 1 MiB; Python takes these in 50 ms
    # Requests of one source that wait: one client cannot fill the ring. Sources share their counters by chance.
    MAX_WAITING = 64
    SOURCES = 1024
    RANDOM_BYTES = 3072         # 256 transaction identifiers for each call of getrandom

# In the order of relay.emulator.turn.native.DROPS.
cdef enum Drop:
    DROP_MALFORMED
    DROP_NO_ALLOCATION
    DROP_NO_CHANNEL
    DROP_NOT_PERMITTED
    DROP_OVERSIZE
    DROP_REFUSED
    DROP_REQUEST_FLOOD
    DROP_PAUSED
    DROPS

# The upper byte of what epoll gives back; the rest is a number.
cdef enum Ready:
    ON_COMMAND
    ON_HOST
    ON_RELAYED

cdef struct Permission:
    int64_t expires_us
    uint32_t ip

cdef struct Channel:
    int64_t expires_us
    uint32_t ip                 # of the peer, as its port
    uint16_t port
    uint16_t number

cdef struct Allocation:
    int64_t expires_us
    uint32_t number
    uint32_t host
    int fd                      # of the relayed address
    uint32_t client_ip
    uint16_t client_port
    uint16_t permission_count
    uint16_t permission_room
    uint16_t channel_count
    uint16_t channel_room
    # Where the last one was found: the next packet is most likely for the same peer.
    uint16_t last_permission
    uint16_t last_channel
    Permission* permissions
    Channel* channels

cdef struct Host:
    int fd                      # -1 while it does not run
    bint paused                 # Python's
    bint asks_sends             # Python's: it decides on each Send indication, because a permission is not enough
    int64_t allocations
    int64_t uplink_packets
    int64_t uplink_bytes
    int64_t downlink_packets
    int64_t downlink_bytes
    int64_t[DROPS] drops

# Clients by host, address and port: open addressing, never more than half full.
cdef struct Entry:
    uint64_t key
    Allocation* allocation      # NULL: free

cdef struct Clients:
    Entry* entries
    uint64_t mask
    uint64_t count
    uint64_t seed               # a client chooses its port, and must not know which of them collide

cdef enum CommandKind:
    OPEN_HOST
    CLOSE_HOST
    INSTALL
    REFRESH
    REMOVE
    PERMIT
    BIND
    TO_CLIENT
    TO_PEER
    MARK
    STOP

# What Python has decided. The bytes of a message follow it.
cdef struct Command:
    Command* next
    int64_t expires_us
    int64_t mark
    uint32_t host
    uint32_t allocation
    uint32_t ip
    uint32_t size
    int fd
    uint16_t port
    uint16_t channel
    CommandKind kind

# What Python is to decide.
cdef struct Request:
    uint32_t host
    uint32_t ip
    uint16_t port
    uint16_t size
    uint8_t[MAX_REQUEST_BYTES] data

# Datagrams that arrive in one system call. Slot i is where message i is received.
cdef struct Arriving:
    uint8_t* slots              # of SLOT_BYTES each
    mmsghdr[BATCH] messages
    iovec[BATCH] vectors
    sockaddr_in[BATCH] addresses

# Datagrams for clients that wait until the end of the turn, in slots of those that arrived, and the hosts that they leave.
cdef struct Leaving:
    uint32_t count
    uint32_t[BATCH] hosts
    uint32_t[BATCH] payload_bytes
    iovec[BATCH] vectors
    sockaddr_in[BATCH] addresses
    mmsghdr[BATCH] messages

cdef struct Engine:
    int epoll
    int command_fd              # Python has put commands
    int event_fd                # there are requests for Python, or a mark was reached
    bint stopping
    int64_t now_us
    Command* commands           # pushed by Python, the last one first
    int64_t mark                # the last one that was reached
    Ring requests
    bint asked                  # in this turn
    uint8_t[SOURCES] asked_by   # requests of sources since the ring was last empty
    Request request             # the one that is put
    Clients clients
    Allocation** allocations    # by number; NULL: free
    uint32_t allocation_room
    Arriving from_clients
    Arriving from_peers
    uint32_t taken              # slots of from_peers that are in use
    Leaving to_clients
    bint carried                # something arrived in this turn
    bint more                   # a socket has more than was taken
    int64_t turned_us           # when something last arrived
    uint8_t[RANDOM_BYTES] random
    uint32_t random_left
    epoll_event[EVENTS_A_TURN] events
    uint32_t[256] crc_table
    Host[MAX_HOSTS] hosts


cdef inline void drop(Host* host, int reason) noexcept nogil:
    host.drops[reason] += 1
