"""How calls sound: a window of each call every five seconds, and what is kept of each call that has ended.

calls        all calls of the plane
call         one call, from its first RTP packet on
ids          what a call is called, by people and programs
windows      how a call sounded in five seconds
histograms   all windows together
writing      what the next two have in common: the way to a disk
records      the file with a record of each call, for other programs
store        calls that have ended, kept for a search; its file is in ``database``
explain      what became of a call, in plain sentences
"""
