"""The result for a build server: each threshold is a test case of JUnit's XML."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

from loadtest.verdict.result import Result


def junit(result: Result) -> str:
    """The XML."""
    suite = f"loadtest {result.profile}"
    cases = [_case(check.name, None if check.passed else check.words) for check in result.checks]
    cases.append(_case("test as a whole", "\n".join(result.reasons) or None))
    failures = sum("<failure" in case for case in cases)
    head = f'<testsuite name={quoteattr(suite)} tests="{len(cases)}" failures="{failures}" time="{result.seconds:.1f}">'
    return "\n".join(['<?xml version="1.0" encoding="UTF-8"?>', head, *cases, "</testsuite>", ""])


def _case(name: str, failure: str | None) -> str:
    opening = f'  <testcase classname="relay.loadtest" name={quoteattr(name)}'
    if failure is None:
        return f"{opening}/>"
    first = failure.splitlines()[0]
    return f"{opening}><failure message={quoteattr(first)}>{escape(failure)}</failure></testcase>"
