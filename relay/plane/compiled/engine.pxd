# The data dictionary of the compiled plane: what a connection is made of, and what a worker owns.
#
# Everything here belongs to one worker thread, except where a comment says otherwise. Python reads the fields of a
# connection for snapshots while the worker writes them. Each is a machine word, so a figure may be a moment old, but is
# never torn.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from relay.plane.compiled.leaves.admission cimport Admission
from relay.plane.compiled.leaves.allowance cimport Allowance, UserAllowance
from relay.plane.compiled.leaves.buffer cimport Buffer
from relay.plane.compiled.leaves.carriage cimport Carriage
from relay.plane.compiled.leaves.contexts cimport Contexts, TicketKeys
from relay.plane.compiled.leaves.delays cimport Delays
from relay.plane.compiled.leaves.histogram cimport Histogram
from relay.plane.compiled.leaves.meter cimport PAYLOAD_TYPES, Meter
from relay.plane.compiled.leaves.naming cimport Naming
from relay.plane.compiled.leaves.openssl cimport BIO_METHOD, SSL
from relay.plane.compiled.leaves.pace cimport Pace
from relay.plane.compiled.leaves.posix cimport epoll_event, iovec, mmsghdr, sockaddr_storage
from relay.plane.compiled.leaves.question cimport Question
from relay.plane.compiled.leaves.reserve cimport Reserve
from relay.plane.compiled.leaves.ring cimport Ring
from relay.plane.compiled.leaves.schedule cimport TRAFFICS, Schedule
from relay.plane.compiled.leaves.sources cimport SOURCE_BYTES, Sources, pthread_mutex_t
from relay.plane.compiled.leaves.tap cimport Tap
from relay.plane.compiled.leaves.transactions cimport Transactions
from relay.plane.compiled.leaves.uplink cimport SOCKADDR_BYTES, Uplink
from relay.plane.compiled.leaves.wire cimport Wire

cdef enum State:
    STATE_FREE
    STATE_HANDSHAKE
    STATE_DECIDING
    STATE_WAITING               # for attach
    STATE_MEDIA                 # a session also before it has an upstream: then udp is -1
    STATE_HTTP
    STATE_CLOSING               # the last bytes are on their way out
    STATE_DEAD                  # descriptors closed; the slot waits until Python has read it

# In the order of relay.plane.api.CloseReason. HandshakeFailure is not here: Python finds it by the words in `failure`.
cdef enum:
    REASON_CLIENT_CLOSED
    REASON_CLIENT_LOST
    REASON_HANDSHAKE_FAILED
    REASON_TLS_BROKEN
    REASON_TLS_FLOOD
    REASON_FIRST_BYTES_TIMEOUT
    REASON_FIRST_BYTES_UNKNOWN
    REASON_NO_ALLOCATION
    REASON_BROKEN_FRAME
    REASON_SLOW_CLIENT
    REASON_RESUMED
    REASON_UPSTREAM_UNREACHABLE
    REASON_UPSTREAM_SILENT
    REASON_NO_UPSTREAM
    REASON_HTTP_CLOSED
    REASON_NETWORK_REFUSED
    REASON_TOO_MANY_CONNECTIONS
    REASON_TOO_MANY_HANDSHAKES
    REASON_TOO_MANY_FLOWS
    REASON_NO_DESCRIPTORS
    REASON_NO_MEMORY
    REASON_CONTROL_TIMEOUT
    REASON_NOT_ENTITLED
    REASON_DRAINING
    REASON_STOPPED
    REASONS

# In the order of relay.plane.api.DropReason.
cdef enum:
    DROP_DOWNLINK_FULL
    DROP_DOWNLINK_OLD
    DROP_DOWNLINK_DUPLICATE
    DROP_DOWNLINK_MALFORMED
    DROP_DOWNLINK_RATE
    DROP_DOWNLINK_USER_RATE
    DROP_UPLINK_MALFORMED
    DROP_UPLINK_RATE
    DROP_UPLINK_USER_RATE
    DROP_UPLINK_OVERSIZE
    DROP_UPLINK_FULL
    DROP_UPLINK_REFUSED
    DROPS

# What control hears. The first ones are facts about a connection, one bit each, and are put in the ring in this order.
cdef enum:
    NOTICE_ADOPTED = 1
    NOTICE_TURN_OPENED = 2
    NOTICE_HTTP_OPENED = 4
    NOTICE_STALE = 8            # 437: a socket on a fresh port is wanted
    NOTICE_CLOSED = 16
    NOTICE_LAST = 16
    # The others are messages, which are put in the ring as they happen, with their bytes.
    NOTICE_ALLOCATE = 32        # the request that waits
    NOTICE_TEXT = 64
    NOTICE_STUN = 128           # number: how often the session had moved
    NOTICE_SILENT = 256         # the upstream is lost; number: as above
    NOTICE_UNREACHABLE = 512    # the same; fault: an errno
    NOTICE_GRANTED = 1024       # the answer that waits
    NOTICE_ALTERNATE = 2048     # 300, the answer: a socket for the server that it names is wanted
    NOTICE_PAUSED = 4096        # of no connection: newcomers wait; fault: an errno, or 0 if they came too fast
    NOTICE_CERTIFICATE = 8192   # what the client has shown in its handshake, in DER; it comes before TURN_OPENED
    NOTICE_NAMED = 16384        # the user whom a granted Allocate named

cdef enum:
    OP_LISTEN                   # number: the socket, flag: ASK_…
    OP_UNLISTEN
    OP_HOLD                     # flag: whether newcomers wait, because memory is short
    OP_CERTIFICATES             # data: Contexts
    OP_CONFIGURE                # data: Bounds
    OP_NETWORKS                 # data: entries of networks
    OP_TICKET_KEY               # data: TicketKey
    OP_ADOPT                    # number: the socket, identity: its adoption_id, flag: ASK_…; data: bytes read already
    OP_ATTACH                   # number: the UDP socket, flag: FLOW_… and the carrier
    OP_REPLACE                  # number: the UDP socket on a fresh port, or for an alternate; -1 if there is none
    OP_UPGRADE                  # as OP_ATTACH, without a socket for a session; data: the response
    OP_MOVE                     # number: the UDP socket, or -1 and flag: why there is none, an errno; moves
    OP_TELL                     # data: a whole frame
    OP_REQUEST                  # data: a STUN message
    OP_ADMIT
    OP_REFUSE                   # data: a STUN message
    OP_ANSWER                   # data: a STUN message
    OP_SHARE                    # data: the UserAllowance
    OP_CLOSE                    # number: the reason
    OP_TAP                      # data: the Tap
    OP_UNTAP                    # data: the Tap
    OP_RELEASE                  # Python has read a closed connection
    OP_STOP

# Flags of OP_ATTACH; the bits above them are the carrier.
cdef enum:
    FLOW_RELEASES = 1           # the upstream releases allocations
    FLOW_ASKS = 2               # it asks for users
    FLOW_FOLLOWS = 4            # it may send the client on (300)
    FLOW_CARRIER_SHIFT = 8

cdef struct Command:
    int op
    int number
    int flag
    int moves                   # of a session, this one included
    uint32_t target_size        # of the address to connect the UDP socket to; 0 if it is connected. OP_ADOPT: the client
    uint8_t[SOCKADDR_BYTES] target
    uint32_t size
    uint64_t identity
    int64_t age_us              # of media for this flow, -1 for the plane's
    void* data                  # owned by the command, freed by the worker

cdef struct Event:
    uint64_t identity
    uint32_t notice
    int number
    int fault
    uint32_t size
    void* data                  # owned by the event, freed by its reader; NULL if there is none

cdef struct Counters:
    uint64_t uplink_packets
    uint64_t uplink_bytes
    uint64_t downlink_packets
    uint64_t downlink_bytes
    uint64_t retransmissions
    uint64_t[DROPS] drops
    uint64_t[TRAFFICS] drops_by_traffic

# One flow of a snapshot.
cdef struct FlowRecord:
    uint64_t identity
    int64_t age_us
    int64_t heard_us
    int64_t allocated_us        # until the allocation ends; 0 if there is none
    Counters counters

# The bounds of relay.plane.settings.PlaneSettings under their names there, with times in microseconds: a field here
# takes the value of the setting without being listed anywhere else (Worker.configure).
cdef struct Bounds:
    int64_t handshake_timeout_us
    int64_t first_bytes_timeout_us
    int64_t allocation_timeout_us
    int64_t control_timeout_us
    int64_t upstream_silence_us
    int64_t initial_rto_us
    int64_t max_descriptors
    int64_t max_connections
    int64_t max_connections_per_source
    int64_t handshakes_per_second
    int64_t handshakes_per_second_per_source
    int64_t max_media_age_us
    int64_t max_data_age_us
    int64_t playout_deadline_us
    int64_t websocket_ping_us
    int64_t packets_per_second_per_flow
    int64_t bytes_per_second_per_flow
    int64_t packets_per_second_per_user
    int64_t bytes_per_second_per_user
    uint32_t downlink_media_bytes
    uint32_t downlink_control_bytes
    uint32_t downlink_data_bytes
    uint32_t[PAYLOAD_TYPES] payload_clocks

# What TCP knows of the way to the client.
cdef struct Link:
    uint32_t rtt_us
    uint32_t rtt_variation_us
    uint32_t retransmits
    uint32_t unsent_bytes
    uint32_t min_rtt_us
    bint known

cdef struct Connection:
    # Identity: a late event or command carries an old generation, and finds no connection.
    uint32_t index
    uint32_t generation
    uint8_t state
    uint8_t carrier
    bint readable               # the client is read
    bint again                  # TLS holds bytes for which there will be no event
    bint more                   # whole units are held, for the next turn
    bint ended                  # the client sends no more
    bint lingering              # all is sent; what the client still sends is read and discarded
    bint released               # Python has read the end
    uint32_t notices            # that wait to be put in the ring
    int fd                      # TCP
    int udp                     # Python's from the end on
    Reserve reserve             # for the UDP socket, or for the pair to control
    int pipe                    # our end of the pair to control
    bint pipe_watched
    int their_pipe              # control's end, until Python takes it
    SSL* ssl
    Wire wire                   # under it
    Contexts* contexts          # while the handshake may ask for a name
    uint8_t asks                # for a certificate of the client: ASK_…
    uint32_t interest           # what epoll watches on fd
    uint64_t adoption_id        # Python's number for an adopted connection
    # Who it is.
    sockaddr_storage client
    uint8_t[SOURCE_BYTES] source    # its address, or the network of its IPv6 address
    bint counted                # in the table of sources, under ``source``
    char[256] server_name
    uint8_t alpn                # 0 none, 1 http/1.1, 2 stun.turn, 3 stun.nat-discovery
    const char* version
    # Uplink: plain bytes of a unit that is not whole, or that wait for a decision.
    Buffer held
    # Downlink: bytes that TLS refused, of which the first ``retry`` must be offered again in one write; and after them
    # the units that wait, which may still be dropped.
    Buffer out
    uint32_t retry
    Schedule schedule
    Pace pace
    bint behind                 # TCP is, for everything or for data; then this is in the list ``behind``
    int64_t max_age_us
    Delays delays
    Link link
    int64_t link_due_us
    Carriage* carriage          # NULL for a TURN stream
    # Meters are made for the first RTP packet, and freed when Python has read the end.
    Meter* uplink_meter
    Meter* downlink_meter
    char* username              # USERNAME_BYTES and a zero; freed with the meters
    uint32_t username_size
    # The flow.
    Transactions* transactions
    Counters counters
    Allowance sent              # to the upstream, in this second
    Allowance received
    UserAllowance* user         # the same for all flows of its user, or NULL
    Naming* naming              # the users whom its Allocates name, or NULL
    Tap* tap                    # where its datagrams are copied to, or NULL
    int64_t opened_us
    int64_t heard_us
    uint32_t heard_turn         # the worker's turn in which the upstream was last heard
    int64_t spoken_us           # when TLS last had work; a second later it gives back its buffers
    bint buffered               # TLS keeps its buffers
    uint32_t warmth             # records written since it gave them back
    int64_t allocated_until_us  # 0: no allocation of its own
    bint allocating
    int64_t idle_since_us       # since when it has none, while it has none
    bint both_families          # it has a relayed address of each
    int64_t heard_media_us      # CONNECT-UDP: when the peer last sent anything but STUN
    int64_t first_byte_us       # of a first unit that is not whole yet
    int64_t allocation_due_us   # when to look whether there is one; 0 for a session, where control has it
    bint releases               # keep the last authenticated request for control
    int fresh_ports
    bint follows                # goes where a 300 leads
    int hops                    # how often it has gone
    uint8_t* stale_answer       # 437 or 300; it goes to the client if there is no socket to go on from
    uint32_t stale_size
    uint8_t* request
    uint32_t request_size
    # Whether control admits the user; while an Allocate waits, the client is not read.
    Admission admission
    int64_t answer_due_us       # when control must have answered about that, or about a lost upstream
    # The end.
    int reason
    int fault                   # a framing fault (negative), an errno, how many first_bytes there are, or X509_V_ERR_…
    const char* failure         # OpenSSL's words, static
    uint8_t[8] first_bytes
    # Time: one deadline at a time, in one slot of the wheel.
    int64_t deadline_us
    Connection* wheel_previous
    Connection* wheel_next
    # Lists of one turn of the loop.
    Connection* again_next
    Connection* noticed_next
    Connection* behind_next
    Connection* free_next
    # Last comes what a packet does not touch if it can be sent at once.
    Uplink uplink
    Question question           # what we ask of a silent upstream ourselves
    int64_t doubt_since_us      # since when ICMP casts doubt on the upstream; 0 if it does not

cdef enum:
    WHEEL_SLOTS = 1024
    MAX_LISTENERS = 512         # a relay before this one may have had 256 workers, and a socket for each, at two addresses
    WHEEL_TICK_US = 8192        # the wheel turns in 8.4 s; what is due later goes round again
    CHUNK = 64                  # connections a slab chunk
    MAX_CHUNKS = 4096
    EVENTS_A_TURN = 256
    DATAGRAMS_A_TURN = 8
    DATAGRAM_ROOM = 16          # in front of it, for the carrier's header
    DATAGRAM_BYTES = DATAGRAM_ROOM + 65536 + 4  # the longest, and room for padding
    MESSAGES_BYTES = 16777216   # that may wait for Python; if more do, it hangs
    PLAIN_BYTES = 16384         # one TLS record
    USERNAME_BYTES = 512        # enough for the 128 characters that are shown

# All workers share it, and change it only when they accept or close.
cdef struct Shared:
    # What a WebSocket client is told at the end, by reason: a code, 0 for nothing, and the reason's word.
    uint16_t[REASONS] close_codes
    char[REASONS][32] close_words
    BIO_METHOD* wires           # under the TLS of every connection
    int64_t connections         # atomic
    Sources sources             # under its own lock
    # Held while descriptors are taken: by control, when it needs one that a connection has kept free, and by a worker
    # that accepts, which never waits for it.
    pthread_mutex_t descriptors

cdef struct Engine:
    int epoll
    int command_fd              # Python rings
    int event_fd                # we ring
    Ring commands               # put by Python, with the GIL
    Ring events                 # taken by Python
    int64_t message_bytes       # atomic; in them
    int number                  # of the worker
    bint stopping
    int64_t now_us
    uint32_t turns              # of the loop; it wraps
    Bounds bounds
    uint8_t* networks           # of clients: entries of the leaf of that name
    uint32_t networks_size
    Contexts* contexts
    TicketKeys ticket_keys
    Shared* shared
    int[MAX_LISTENERS] listeners
    uint8_t[MAX_LISTENERS] listeners_ask    # for a certificate of the client: ASK_…
    int listener_count
    bint accepting
    bint held                   # nobody is accepted, because memory is short
    Reserve reserve             # of the next newcomer
    int64_t accept_again_us
    int64_t pause_told_us
    # The slab.
    Connection* chunks[MAX_CHUNKS]
    uint32_t slots
    Connection* free_slots
    uint32_t live               # connections whose socket is open
    uint32_t used               # slots that are not free
    # Time.
    Connection* wheel[WHEEL_SLOTS]
    int64_t wheel_tick
    uint32_t armed
    # Time in the relay, each way: from when the worker could first have seen a packet to when it was sent.
    int64_t looked_us
    uint64_t sent_up            # packets of this turn that wait to be noted
    uint64_t sent_down
    uint32_t pong_bytes         # in ``record``, within one call
    Histogram uplink_us
    Histogram downlink_us
    int64_t swept_us            # when idle TLS buffers were last given back
    int64_t flushed_us          # when notices were last put in the ring
    # Lists of one turn.
    Connection* again
    Connection* noticed
    # Connections whose TCP is behind, and when it was last asked.
    Connection* behind
    int64_t behind_seen_us
    # Counted from the start, connections that have ended included.
    uint64_t accepted
    Counters ended
    Delays ended_delays
    int64_t ends                # atomic; odd while a flow's counters move to those that have ended
    uint64_t[REASONS] closed
    # Buffers of one turn.
    epoll_event[EVENTS_A_TURN] epoll_events
    mmsghdr[DATAGRAMS_A_TURN] messages
    iovec[DATAGRAMS_A_TURN] vectors
    uint8_t* datagrams
    uint8_t[PLAIN_BYTES] plain
    uint8_t[PLAIN_BYTES] record
