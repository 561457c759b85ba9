"""Quality: what RTP headers tell of a call, and delay and loss to R factor and MOS; without I/O and without a clock."""
