"""The APIs that other programs use, and how their requests are signed.

signing         the string to sign, and signatures; pure
signing_faults  why a signature is wrong
nonces          each nonce counts once
entitlement     who has voice through the relay, and why
verifying       the server's side: whose a request is, and whether they may do this
security        from an HTTP request to the key it was signed with
models          what the models of all APIs share
management      users, buttons and connections
call_data       transcriptions of calls, in a ZIP
audit           what happened, and by whom
cti/            a firm's lines and users over a WebSocket
sign_command    ``relay emulate sign``: its options
signing_by_hand  what it does
"""
