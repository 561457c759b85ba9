"""Who talks to the relay, on either side of it. What is real runs as a process; the rest does what a test says.

Clients
    aioice_client      what clients of aioice need
    browser            Chromium, with as many tabs as a test needs
    carriers           WebSocket and capsules, byte by byte
    client_hello       ClientHellos that are made up
    connect            a client of a web proxy
    cti_client         a program that uses the CTI API
    forging_client     TLS records that no library would send
    own_clients        the product's own clients
    raw_http           HTTP as bytes, and an upstream that records them
    raw_session        a session of media.v1, message by message
    raw_turn           a TURN client, request by request
    schemathesis_auth  what schemathesis loads: signatures and tokens
    schemathesis_run   schemathesis, in a process
    silent_crowd       connections that say nothing
    softphone_page     the emulator's softphone page in a tab, used as a person would
    tls_client         TLS, record by record
    turn_asker         asks a TURN server one thing at a time, over UDP or through TLS
    uclient            coturn's load client

Upstreams and what is near them
    behind_turn        peers that echo
    coturn             the real TURN server
    dns                a DNS server
    responder          a UDP server that answers from a script
    scripted_upstream  a UDP socket that does what the test says

Servers, proxies and services
    bad_proxies        web proxies that spoil what passes
    balancer           a balancer in front of several relays
    connect_proxy      a web proxy that opens tunnels
    emulator_process   an emulator, one of several of a cloud
    ocsp               who answers for certificates, and a client that looks
    postgresql         PostgreSQL
    prometheus         Prometheus, with our rules
    python_socketio    python-socketio's server
    redis_server       Debian's redis-server
    reverse_proxies    haproxy and nginx
    scripted_relay     a server in a relay's place
    service_manager    what systemd is, for a service: a socket that it is told things at
    socketio           the official socket.io servers and clients, from ``node/``
    squid              a firm's web proxy
    upgrades           control's part of a WebSocket handshake
    user_service       a firm's service of users
"""
