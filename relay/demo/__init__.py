"""The demo: softphones place real SRTP calls through an emulated cloud and a relay, all in one process.

authority  a temporary certificate authority, for tests
calls      the calls: for each carrier two softphones
cloud      the emulated cloud with its users, and the relay
commands   ``relay demo`` on the terminal
progress   a bar, or lines, while calls last
report     the table, and the same as JSON
run        all of it
wan/       ``relay demo --wan``: a spoken sentence over a bad path, to hear why
"""
