"""The compiled plane: worker threads of ``relay._fastpath`` carry packets, and Python gives them their commands.

plane        the verbs of the contract
connections  what Python remembers of the workers' connections
events       the workers' notices become events
snapshots    what the workers have counted
tap          copies of a flow's datagrams
numbers      what Python and the workers count by
leaves/      what the workers are made of
"""
