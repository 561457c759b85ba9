"""Quality: delay and loss to R factor and MOS; pure functions over numbers, without I/O and without a clock."""
