"""Who may place calls through this relay, to which regions, and how many at once.

verdicts      what others ask: it knows the policy, and counts and logs what was decided
policies      everyone may call ("none"), or rules from the configuration or from a file
policy_http   rules from a service of the firm
places        calls at once
admission     asks for the TURN clients whose Allocate the data plane has read
"""
