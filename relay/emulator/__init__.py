"""The vendor's cloud on a laptop, for developers, demonstrations and tests. It says what of it is documented.

Each part imports only what stands above it in this list
--------------------------------------------------------
marks, names, lines  where our knowledge comes from; roles of hosts and users; kinds of lines
fixtures             the firms, users, lines and keys to begin with (``default_fixtures.toml``)
store/               the database
claims               its folder and its addresses, which no other emulator may have
handshakes           when a handshake of TLS begins
http/                one site for all hosts; endpoints that check and describe themselves
login/               login, settings, TURN credentials, logs of clients
turn/                TURN hosts
sfu/                 hoots: a few talkers to many subscribers
faults/              what goes wrong on demand, at each hop between a desk and the vendor
signaling/           presence and lines, over socket.io
hoots                what signaling decides about a hoot, the SFU does
apis/                signed APIs for other programs: CTI, Management, Call Data, audit
softphone_page       a softphone in the browser; its files are in ``web/softphone``
recordings/          the upload of recordings, and what there is of them
portal/              web pages for administrators and users of a firm
settings             what the command line chose; where the TURN hosts are
tls                  the certificate of all hosts
descriptors          as many as there may be, and a warning before there are none left
welcome              the page at ``/``
stopping             a deadline for the end of each part
cloud                starts and stops all of it
folder               the files for clients, relays and scripts
softphone/           a headless client of all of it
"""
