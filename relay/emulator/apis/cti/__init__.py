"""The CTI API: programs watch a firm's lines and users over a WebSocket, and place and end calls for them.

messages     what goes over the wire, each with its mark, and the codes
envelope     a message in its signed envelope; pure
statuses     from the state of a line to the status of a user's call on it; pure
rejections   rejections on demand, for programs that want to see how they behave then
floor        what a firm sees of signaling, and what may be done in it
connection   one client: its messages, its queue, and when it is cut off
server       the WebSocket at ``/api``: who is let in, and who hears of what
"""
