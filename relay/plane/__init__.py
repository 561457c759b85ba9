"""The data plane. ``api`` is the contract; what both planes share stands beside it.

compiled/   the plane that serves: threads of ``relay._fastpath``
reference/  its slow, obvious twin on asyncio

Neither plane imports the other.
"""
