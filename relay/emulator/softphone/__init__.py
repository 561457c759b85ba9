"""A headless softphone, for scripts, for the demo and for load tests: it logs in, and makes and takes calls.

sdp         media descriptions, as pure functions
voice       RTP and SRTP of both directions, with a check of each packet
pacer       the clock of all speakers
ogg         recordings as Ogg Opus
"""
