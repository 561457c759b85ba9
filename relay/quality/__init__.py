"""Call quality, without I/O and without a clock: what RTP headers say of a call, and its R factor and MOS."""
