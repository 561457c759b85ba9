"""What was measured becomes an answer. Pure, but for ``environment``: it is given a record, and writes nothing.

result       the answer as a model, whose JSON Schema is published
judging      a record and thresholds to a result
environment  the machine and the versions
junit        the result for a build server
table        each second, as CSV
charts       lines over time, as SVG
page         the result for people, as one HTML file
compare      two results, side by side
"""
