"""Who may have voice through this relay, to which regions, and how many calls at once.

``verdicts`` is what others ask. Its rules come from ``policies`` (a list, a file) or ``policy_http`` (a service of the
firm), calls at once are counted in ``places``, and ``admission`` asks for the TURN clients whose Allocate the data
plane has read.
"""
