"""The network that tests run on.

bursts          room in UDP sockets
doctors_worlds  networks that block something, each in a namespace, for the doctor
known_path      a bad path that writes down what it did to each packet of voice
netns           what is in a network namespace
ports           addresses that nobody else takes
refusing        a kernel that refuses to send
wan             two namespaces with a bad line between them, for programs of any kind
"""
