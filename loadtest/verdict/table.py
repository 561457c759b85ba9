"""Each second of a test, as CSV."""

from __future__ import annotations

import csv
import io

from loadtest.verdict.result import Result, Second

COLUMNS = tuple(Second.model_fields)


def table(result: Result) -> str:
    """The CSV. What was not measured is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for second in result.intervals:
        writer.writerow(_cell(getattr(second, column)) for column in COLUMNS)
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return int(value)
    return f"{value:.6g}" if isinstance(value, float) else value
