# Control decides, and puts commands in a ring. This layer takes them out and does what they say.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from relay.plane.compiled.engine cimport (
    FLOW_ASKS, FLOW_CARRIER_SHIFT, FLOW_FOLLOWS, FLOW_RELEASES, MAX_LISTENERS, NOTICE_ADOPTED, OP_ADMIT, OP_ADOPT,
    OP_ANSWER, OP_ATTACH, OP_CERTIFICATES, OP_CLOSE, OP_CONFIGURE, OP_HOLD, OP_LISTEN, OP_MOVE, OP_NETWORKS, OP_REFUSE,
    OP_RELEASE, OP_REPLACE, OP_REQUEST, OP_SHARE, OP_STOP, OP_TAP, OP_TELL, OP_TICKET_KEY, OP_UNLISTEN, OP_UNTAP, OP_UPGRADE,
    REASON_CLIENT_CLOSED, REASON_NO_DESCRIPTORS, REASON_STOPPED, REASON_UPSTREAM_UNREACHABLE, STATE_FREE,
    STATE_HANDSHAKE, STATE_HTTP, STATE_MEDIA, STATE_WAITING, Bounds, Command, Connection, Engine,
)
from relay.plane.compiled.slots cimport ON_LISTENER, at, close_open, find, queue_notice, run_again, watch
from relay.plane.compiled.wheel cimport arm, clear_deadline
from relay.plane.compiled.ending cimport end, release, write_client
from relay.plane.compiled.arrival cimport take_first, welcome
from relay.plane.compiled.delivery cimport reply, send_own
from relay.plane.compiled.upstream cimport (
    leave_upstream, on_upstream_gone, send_request, send_up, use_socket, watch_upstream,
)
from relay.plane.compiled.uplink cimport remember
from relay.plane.compiled.reading cimport read_on
from relay.plane.compiled.leaves cimport posix
from relay.plane.compiled.leaves.admission cimport is_waiting_for_control, take_asked
from relay.plane.compiled.leaves.allowance cimport UserAllowance, leave_user_allowance
from relay.plane.compiled.leaves.buffer cimport clear_buffer
from relay.plane.compiled.leaves.carriage cimport CARRIER_SESSION, CARRIER_TURN, open_carriage
from relay.plane.compiled.leaves.contexts cimport Contexts, TicketKey, free_contexts
from relay.plane.compiled.leaves.live cimport LIVE_SOCKETS, calloc, count_live, free
from relay.plane.compiled.leaves.reserve cimport RESERVED_DESCRIPTORS, fill, give_up
from relay.plane.compiled.leaves.ring cimport take
from relay.plane.compiled.leaves.stun cimport TRANSACTION_ID_OFFSET, datagram_unit
from relay.plane.compiled.leaves.tap cimport Tap, end_tap, leave_tap
from relay.plane.compiled.leaves.transactions cimport Transactions, find_pending, on_response


cdef inline void on_commands(Engine* e) noexcept nogil:
    cdef uint64_t rung
    cdef Command command
    posix.read(e.command_fd, &rung, sizeof(rung))
    while take(&e.commands, &command):
        on_command(e, &command)


cdef inline void on_command(Engine* e, Command* command) noexcept nogil:
    cdef Connection* c
    if command.op == OP_LISTEN:
        add_listener(e, command.number, <uint8_t> command.flag)
    elif command.op == OP_UNLISTEN:
        close_listeners(e)
    elif command.op == OP_HOLD:
        e.held = command.flag
    elif command.op == OP_CERTIFICATES:
        use_contexts(e, <Contexts*> command.data)
        return
    elif command.op == OP_CONFIGURE:
        memcpy(&e.bounds, command.data, sizeof(Bounds))
    elif command.op == OP_NETWORKS:
        free(e.networks)
        e.networks, e.networks_size = <uint8_t*> command.data, command.size
        return
    elif command.op == OP_TICKET_KEY:
        e.ticket_keys.has_previous = e.ticket_keys.has_current
        e.ticket_keys.has_current = True
        e.ticket_keys.previous = e.ticket_keys.current
        memcpy(&e.ticket_keys.current, command.data, sizeof(TicketKey))
    elif command.op == OP_ADOPT:
        adopt(e, command)
    elif command.op == OP_STOP:
        stop(e)
    else:
        c = find(e, command.identity)
        if command.op == OP_SHARE:
            on_share(c, <UserAllowance*> command.data)
            return
        if command.op in (OP_TAP, OP_UNTAP):
            on_tap(c, <Tap*> command.data, command.op == OP_TAP)
            return
        if c != NULL:
            on_connection_command(e, c, command)
        elif command.op in (OP_ATTACH, OP_REPLACE, OP_UPGRADE, OP_MOVE) and command.number >= 0:
            posix.close(command.number)
    free(command.data)


# A command that comes too late for its connection does nothing, and closes the socket that came with it.
cdef inline void on_connection_command(Engine* e, Connection* c, Command* command) noexcept nogil:
    if command.op == OP_RELEASE:
        release(e, c)
    elif command.op == OP_CLOSE:
        end(e, c, command.number)
    elif command.op == OP_ATTACH and c.state == STATE_WAITING:
        attach(e, c, command)
    elif command.op == OP_UPGRADE and c.state == STATE_HTTP:
        upgrade(e, c, command)
    elif command.op == OP_REPLACE and c.state == STATE_MEDIA:
        replace(e, c, command)
    elif c.state == STATE_MEDIA and on_flow_command(e, c, command):
        return
    elif command.number >= 0:
        posix.close(command.number)


# Returns True if the command means something for this carrier, in its present state.
cdef inline bint on_flow_command(Engine* e, Connection* c, Command* command) noexcept nogil:
    if command.op == OP_ADMIT and c.admission.asked != NULL:
        admit(e, c)
    elif command.op == OP_REFUSE and c.admission.asked != NULL:
        free(take_asked(&c.admission))
        on_control_spoke(c)
        reply(e, c, <const uint8_t*> command.data, command.size)
        read_on(e, c)
    elif command.op == OP_ANSWER and c.admission.granted:
        c.admission.granted = False
        on_control_spoke(c)
        reply(e, c, <const uint8_t*> command.data, command.size)
    elif c.carrier != CARRIER_SESSION:
        return False
    elif command.op == OP_MOVE:
        move(e, c, command)
    elif command.op == OP_TELL:
        send_own(e, c, <const uint8_t*> command.data, command.size)
    elif command.op == OP_REQUEST:
        if c.udp >= 0:
            remember(e, c, <const uint8_t*> command.data, command.size)
            send_request(e, c, <const uint8_t*> command.data, command.size)
    else:
        return False
    return True


cdef inline void add_listener(Engine* e, int fd, uint8_t asks) noexcept nogil:
    if e.listener_count == MAX_LISTENERS or watch(
        e, posix.EPOLL_CTL_ADD, fd, posix.EPOLLIN, <uint64_t> ON_LISTENER << 56 | e.listener_count
    ) < 0:
        posix.close(fd)
        return
    e.listeners[e.listener_count] = fd
    e.listeners_ask[e.listener_count] = asks
    e.listener_count += 1
    e.accepting = True
    fill(&e.reserve, e.command_fd, RESERVED_DESCRIPTORS, e.bounds.max_descriptors)


cdef inline void close_listeners(Engine* e) noexcept nogil:
    while e.listener_count:
        e.listener_count -= 1
        # Another process may have the same socket. Then our epoll would go on to report its newcomers.
        watch(e, posix.EPOLL_CTL_DEL, e.listeners[e.listener_count], 0, 0)
        posix.close(e.listeners[e.listener_count])
    give_up(&e.reserve)


# Handshakes that have begun keep the old certificates; the last of them frees those.
cdef inline void use_contexts(Engine* e, Contexts* contexts) noexcept nogil:
    cdef Contexts* old = e.contexts
    e.contexts = contexts
    if old != NULL:
        old.retired = True
        if not old.references:
            free_contexts(old)


cdef inline void adopt(Engine* e, Command* command) noexcept nogil:
    cdef Connection* c = welcome(
        e, command.number, command.target, command.target_size, <uint8_t> command.flag)
    if c == NULL:
        return
    c.adoption_id = command.identity
    queue_notice(e, c, NOTICE_ADOPTED)
    if command.size and c.state == STATE_HANDSHAKE and take_first(
        e, c, <const uint8_t*> command.data, command.size
    ) and c.wire.hello.whole:
        # These bytes are no longer in the socket, so there will be no event for them.
        run_again(e, c)


# The connection becomes a flow.
cdef inline void attach(Engine* e, Connection* c, Command* command) noexcept nogil:
    use_socket(c, command)
    count_live(LIVE_SOCKETS, c.udp >= 0)
    c.releases = command.flag & FLOW_RELEASES
    c.admission.asks = command.flag & FLOW_ASKS
    c.follows = command.flag & FLOW_FOLLOWS
    c.carrier = <uint8_t> (command.flag >> FLOW_CARRIER_SHIFT)
    c.max_age_us = command.age_us if command.age_us >= 0 else e.bounds.max_media_age_us
    c.transactions = <Transactions*> calloc(1, sizeof(Transactions))
    c.heard_us = c.opened_us = e.now_us
    clear_deadline(e, c)
    if c.carrier != CARRIER_TURN:
        c.carriage = open_carriage(c.carrier, e.now_us, e.bounds.websocket_ping_us)
    if c.transactions == NULL or (c.carriage == NULL and c.carrier != CARRIER_TURN) or not watch_upstream(e, c):
        end(e, c, REASON_NO_DESCRIPTORS)
        return
    c.transactions.rto_us = e.bounds.initial_rto_us
    c.state = STATE_MEDIA
    c.idle_since_us = e.now_us
    if c.carrier != CARRIER_SESSION:
        c.allocation_due_us = e.now_us + e.bounds.allocation_timeout_us
    arm(e, c)
    read_on(e, c)


# The client gets the response, and the connection leaves HTTP and becomes a flow.
cdef inline void upgrade(Engine* e, Connection* c, Command* command) noexcept nogil:
    if c.ended:
        close_open(command.number)
        end(e, c, REASON_CLIENT_CLOSED)
        return
    posix.close(c.pipe)
    c.pipe = -1
    count_live(LIVE_SOCKETS, -1)
    clear_buffer(&c.held)
    if command.size:
        write_client(e, c, <const uint8_t*> command.data, command.size)
    if c.state == STATE_HTTP:
        attach(e, c, command)
    else:
        close_open(command.number)


# A session goes on at another upstream; or control learns that the way there is closed. Its counters and meters go on.
cdef inline void move(Engine* e, Connection* c, Command* command) noexcept nogil:
    if not c.carriage.moves:
        c.opened_us = e.now_us
    c.carriage.moves = command.moves
    leave_upstream(e, c)
    if command.number < 0:
        on_upstream_gone(e, c, REASON_UPSTREAM_UNREACHABLE, command.flag)
        return
    use_socket(c, command)
    count_live(LIVE_SOCKETS, 1)
    c.max_age_us = command.age_us if command.age_us >= 0 else e.bounds.max_media_age_us
    c.heard_us = e.now_us
    if not watch_upstream(e, c):
        end(e, c, REASON_NO_DESCRIPTORS)


# The flow goes on from another socket. If there is none (-1), the client gets the response that was kept from it.
cdef inline void replace(Engine* e, Connection* c, const Command* command) noexcept nogil:
    cdef int fd = command.number
    cdef uint8_t* answer = c.stale_answer
    cdef uint32_t size = c.stale_size
    cdef int position
    c.stale_answer = NULL
    if fd < 0 and answer != NULL:
        on_response(c.transactions, answer + TRANSACTION_ID_OFFSET)
        reply(e, c, answer, size)
    elif fd >= 0:
        watch(e, posix.EPOLL_CTL_DEL, c.udp, 0, 0)
        posix.close(c.udp)
        use_socket(c, command)
        if c.tap != NULL:
            c.tap.placed = False
        watch_upstream(e, c)
        position = find_pending(c.transactions, answer + TRANSACTION_ID_OFFSET) if answer != NULL else -1
        if position >= 0:
            send_up(e, c, c.transactions.pending[position].message, c.transactions.pending[position].size)
    free(answer)


# Control admits the user: the Allocate that waits goes on, and the client is read again.
cdef inline void admit(Engine* e, Connection* c) noexcept nogil:
    cdef uint8_t* request = take_asked(&c.admission)
    cdef uint32_t size = c.admission.asked_size
    on_control_spoke(c)
    # Over CONNECT-UDP the message may be broken, and goes on as it is.
    if datagram_unit(request, size):
        remember(e, c, request, size)
    send_up(e, c, request, size)
    free(request)
    read_on(e, c)


cdef inline void on_control_spoke(Connection* c) noexcept nogil:
    if not is_waiting_for_control(&c.admission):
        c.answer_due_us = 0


# Each command owns a share of its tap. Here the connection takes over that share, and ends its old tap; or the share is
# given up.
cdef inline void on_tap(Connection* c, Tap* tap, bint wanted) noexcept nogil:
    if wanted and (c == NULL or c.state != STATE_MEDIA or c.udp < 0):
        end_tap(tap)
        return
    if c != NULL and c.tap != NULL and (wanted or c.tap == tap):
        end_tap(c.tap)
        c.tap = NULL
    if wanted:
        c.tap = tap
    else:
        leave_tap(tap)


# The command owns a share of what a user may carry. Here the flow takes it over, in place of the one that it had.
cdef inline void on_share(Connection* c, UserAllowance* user) noexcept nogil:
    if c == NULL or c.state != STATE_MEDIA:
        leave_user_allowance(user)
        return
    leave_user_allowance(c.user)
    c.user = user


cdef inline void stop(Engine* e) noexcept nogil:
    cdef uint32_t i
    close_listeners(e)
    e.stopping = True
    for i in range(e.slots):
        if at(e, i).state != STATE_FREE:
            end(e, at(e, i), REASON_STOPPED)
