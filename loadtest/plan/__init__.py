"""What a load test is to do, as values that are checked before anything starts.

profile  the TOML of a profile: users, media, shape, thresholds
shapes   how many users there are at each second
target   where the load goes, and where it must never go
hosts    names and addresses in their one form, whose they are, and where they lead
search   the search for the most calls that a target carries
work     profile and target together, as the processes of a test hand it to each other
"""
