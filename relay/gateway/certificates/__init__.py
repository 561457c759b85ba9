"""The certificates that the relay shows its clients: which there are, which serve, and what is wrong with them.

files      pairs of files, named one by one or by a pattern, and whether they have changed
findings   what is wrong with a certificate that can be used all the same
ocsp       what an issuer is asked about a certificate, and what its answer is worth
stapling   asks, and staples the answers to handshakes
client_ca  who may sign the certificates that clients show: the file is read, judged and watched
keeper     the certificates in service; it watches their files, and keeps the old where the new cannot be used
"""
