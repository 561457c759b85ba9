"""What tests share. Nothing here is a test, and nothing here imports one; benchmarks use it as well.

benches/        what is tested, set up: a plane, a gateway, a process
network/        ports, namespaces, and a bad WAN
peers/          who talks to the relay: clients, upstreams, proxies, services; real ones and scripted ones
brief_stacks    asyncio's notes of where something was made, cut short
brief_stores    the emulator's databases, opened and filled in little time
certificates_made  certificates of any validity, with any names, and their files
chart           the Helm chart, as Helm renders it
client_certificates  clients that show a certificate, and who signs these
compiled        builds the compiled modules of the tests
descriptors     more of them than usual, or none
emulated_lines  lines and users of the emulator's signaling, without a store
grafana         the panels of the dashboard, and what they ask for
http_table      requests and answers that a reverse proxy passes on, byte by byte
imports         which modules a source imports
kept            what the tests of a process share until the last one has ended
media_files     recordings as Ogg/Opus and M4A
messages        STUN messages, the answers to them, and voice in ChannelData
pcapng          a strict reader of captures
processes       the children of a process, while they come and go
properties      what property tests share
ssrf_table      addresses that must never be connected to
stun_vectors    the test vectors of the RFCs
turn_clauses    what a TURN server must do, clause by clause
volumes         mounted volumes, as Kubernetes changes them
waiting         wait for what another thread, process or socket does
"""
