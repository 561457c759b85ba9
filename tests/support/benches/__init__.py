"""What is tested, set up and taken down again.

apis            the emulator's APIs on a port, with the default fixtures, and a client for them
background      an event loop in a thread, for servers that outlive one test
capture         a relay with one flow, and captures of it
cloud           an emulated cloud in the test's loop, and clients for it
commands        a command of the command line, without a process
doctor          plans of the doctor
echoing         a plane whose upstream and control send everything back
emulating       ``relay emulate``, in a process or in the test's loop
emulated_signaling  the emulator's signaling server, and phones that talk to it
floor           an emulated cloud with a relay in front of it
gateway         a whole relay in the test's loop
health          the health monitor, and what it found out
made_up         the admin's parts, with calls that are made up
plane           a plane with a scripted upstream, its clients, and its traffic
plane_process   a plane in a process, with few descriptors
portal          the emulator's portal, with calls and recordings that are made up
serving         ``relay serve`` in a process
signaling       a relay in front of an upstream that records
taps            taps that copy already
turn            a TURN server and a client in memory, with a clock that the test moves
turn_servers    TURN servers side by side: ours over UDP and through a relay, and coturn
"""
