"""Locust's side: users of load tests, which import gevent, and what they have in common.

targeted    TargetUser: a target, and a number of its own
measuring   one event to Locust and one to our own histograms
lines       the packet engine under gevent: who waits for what it tells
phones      asyncio in a native thread, for softphones
listening   how streams sound, second by second
media       MediaUser: voice alone
signaling   SignalingUser: login, socket.io and the events of lines
calls       CallUser: signaling, and voice in the packet engine
storm       StormUser: logs in, allocates, and comes again
recording   RecordingUser: uploads recordings, and fetches them
checking    whether a locustfile can be used, before anything else starts
collector   what was measured, once a second: to the record, or to the master
kinds       what the users of a profile do, for each kind
hooks       what happens at the events of Locust
webpage     a table and a page more in Locust's own web page
"""
