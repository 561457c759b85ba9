"""The demo: softphones place real SRTP calls through emulated TURN hosts and a relay, all in one process."""
