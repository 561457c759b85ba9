#!/bin/sh
# Starts the relay for a benchmark:  start-relay.sh PORT UPSTREAM_PORT
# The environment has RELAY_CERT and RELAY_KEY, two files, and RELAY_DIR, a folder for relay.toml. It may have RELAY_PLANE (by
# default that of the configuration) and RELAY_SIGNALING, the URL of a socket.io server. The relay keeps this process's id.
set -eu

plane=""
if [ -n "${RELAY_PLANE:-}" ]; then plane="plane = \"$RELAY_PLANE\""; fi
signaling=""
if [ -n "${RELAY_SIGNALING:-}" ]; then signaling="upstreams = [\"$RELAY_SIGNALING\"]"; fi

cat >"$RELAY_DIR/relay.toml" <<TOML
[listen]
tls = ["127.0.0.1:$1"]
admin = "127.0.0.1:0"
workers = 1 # the benchmark gives it one core
$plane

[[certificates]]
certificate = "$RELAY_CERT"
private_key = "$RELAY_KEY"

[[upstreams]]
name = "bench"
address = "127.0.0.1:$2"

[signaling]
$signaling

[log]
level = "warning"
TOML

exec relay serve --config "$RELAY_DIR/relay.toml"
