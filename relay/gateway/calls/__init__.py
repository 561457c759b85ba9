"""How calls sound: a window of each call every five seconds, and a record of each call that has ended."""
