"""What several relays share, in a Redis: calls at once of a user, which server holds a session of socket.io, who is up.

cluster       this relay's part: its lease, what it knows of the others, and the task that keeps both
calls         calls at once of each user, over all relays
sessions      which server of signaling holds a session of socket.io
returns       sessions of media.v1 that their client has opened anew at another relay
records       what a relay says of itself
store         questions to Redis: their deadline, and what is counted and logged when they fail
client        the questions themselves, as all others see them
redis_client  the same in the words of Redis, and the names of its keys; only ``opening`` imports it
opening       opens it, if it is configured

Without ``cluster.redis`` nothing here does anything, and the library of Redis need not be installed. While Redis is
away, each relay decides by what it knows itself. No media waits for any of this.
"""
