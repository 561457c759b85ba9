"""Memory: how much of it is left, and what the relay no longer begins when there is little.

readings   what the kernel says: control groups, stalls, the process itself
watch      when memory is short, and who is told

Running calls need next to no new memory. So when it is short, newcomers wait in the kernel's queue, new flows, tunnels
and sessions of socket.io are refused, and calls go on. Without this the kernel would first slow all calls down
(``memory.high``), and then end the process with all of them (``memory.max``).
"""
