"""The packet engine: the media of thousands of simulated calls, in a thread of its own without the GIL.

It is header-only Cython (``.pxd``):

openssl   what a client and SRTP use of OpenSSL, beyond the leaves of the compiled plane
srtp      AES_CM_128_HMAC_SHA1_80
heap      what is due next
carriers  units on the wire, for each carrier
"""
