"""Faults on demand: what goes wrong between a desk and the vendor, at which hop, and until when. Live.

kinds       what can go wrong, where, and with which figures
board       which faults are on
service     the API of the board
cloud_hop   faults of the vendor's hosts: a region, a name, credentials, the recorder
udp_hop     a bad line between desks and TURN hosts, over UDP
web_proxy   a bad web proxy: CONNECT
pumps       bytes through the web proxy: delayed, stalled, cut
inspection  TLS that the web proxy ends, and the HTTP that it changes
hops        all of it together, for ``cloud``
passing     HTTP messages, passed on one after the other
"""
