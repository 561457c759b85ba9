"""The vendor's side on a laptop: TURN hosts."""
