"""Voice through the relay for other programs, on asyncio: sessions without TURN, and TURN over every carrier.

Which one do you need? ``session``, if you have SRTP and no TURN client: the relay allocates, moves you to another
upstream when yours dies, and lets you come back after a cut. ``carriers`` and ``turn``, if you speak TURN yourself:
over WebSocket if a web proxy inspects TLS, over TLS if it only tunnels, over CONNECT-UDP if your TURN client knows only
UDP.

A whole session; ``tell_peer`` is your own signaling::

    import asyncio
    from relay.addresses import Address
    from relay.client.session import open_session

    async def call(username: str, password: str, peer: Address) -> None:
        def on_data(peer: Address, packet: bytes) -> None: ...      # SRTP from the other side

        async with await open_session(
            "wss://voice.firm.example/media",
            username=username,                                      # the TURN credentials of the vendor's signaling
            password=password,
            proxy="http://desk:secret@proxy.firm.example:3128",     # or None
            on_data=on_data,
            on_moved=tell_peer,                                     # the relayed address has become another
        ) as session:
            tell_peer(session.relayed_address)
            await session.bind(peer)
            for packet in packets():                                # 50 times a second
                session.send(peer, packet)
            # ``session.closed`` is done when it ends, with the reason.

TURN over WebSocket, and the same over CONNECT-UDP and TLS::

    from relay.client.carriers import open_turn_connect_udp, open_turn_websocket
    from relay.client.turn import open_turn_tls

    async with await open_turn_websocket(
        "wss://voice.firm.example/turn", username, password, proxy=proxy, on_data=on_data
    ) as turn:
        tell_peer(await turn.allocate())
        await turn.bind_channel(peer)
        turn.send(peer, packet)

    server = Address("use1-stun1.xhoot.com", 3478)
    turn = await open_turn_connect_udp("https://voice.firm.example", server, username, password, on_data=on_data)
    turn = await open_turn_tls(Address("voice.firm.example", 443), username, password, ssl_context=context, proxy=proxy)

All of them trust the system's certificates unless they are given an ``ssl.SSLContext``, and raise UpstreamError with
words that say who refused what. ``send`` never waits: packets of more than 2,000 bytes are dropped, and so are packets
while 64 KiB wait, in the kernel's buffer too; ``dropped`` counts them. Callbacks run in the loop. What they raise is
logged, and a callback that blocks the loop for seconds cuts no connection. ``family=AddressFamily.BOTH`` asks for an
IPv6 address as well, ``additional_address``.

Inside: ``turn`` drives the TURN state machine, ``links`` and ``upgraded`` own the sockets, ``connect`` gets through
proxies, ``application`` calls back, and ``requests`` are the answers that are awaited.
"""
