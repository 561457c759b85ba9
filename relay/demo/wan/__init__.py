"""A bad WAN on one machine, and what goes over it.

netns  network namespaces without names
link   one direction of a line, as a model without I/O and clock
line   two namespaces, and a line between them
"""
