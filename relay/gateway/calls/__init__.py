"""How calls sound: a window of each call every five seconds, and a record of each call that has ended.

calls        all calls of the plane
call         one call, from its first RTP packet on
windows      how a call sounded in five seconds
histograms   all windows together
records      the file with a record of each call
"""
