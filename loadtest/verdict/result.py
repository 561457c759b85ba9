"""The result of a load test, as programs read it. ``result.schema.json`` is its JSON Schema, which a test compares.

A figure that was not measured is null, never a good one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from relay.config.reading import explain
from relay.errors import OperatorError

FORMAT: Literal["relay-loadtest-result/1"] = "relay-loadtest-result/1"
SCHEMA = Path(__file__).parent / "result.schema.json"
# A day of seconds is 40 MB.
MAX_FILE_BYTES = 256 * 1024 * 1024


class _Model(BaseModel):
    # A figure that is not a number is compared with nothing.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Percentiles(_Model):
    """Of ``count`` values, in milliseconds."""

    count: int
    p50_ms: float | None = None
    p90_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    p999_ms: float | None = None
    max_ms: float | None = None


class Check(_Model):
    """One threshold. ``measured`` is null if there was nothing to measure, and then it has failed."""

    name: str
    limit: float
    comparison: Literal["at most", "at least"]
    measured: float | None
    unit: str
    passed: bool

    @property
    def words(self) -> str:
        """What was found, and what was expected."""
        found = "not measured" if self.measured is None else f"{self.measured:.4g} {self.unit}".rstrip()
        return f"{found}; expected {self.comparison} {self.limit:g} {self.unit}".rstrip()


class Packets(_Model):
    """Packets of all streams. ``late`` packets are among the received; missing ones were lost or late."""

    sent: int = 0
    unsent: int = Field(default=0, description="due, but the line was not there, or had no room")
    received: int = 0
    lost: int = 0
    late: int = 0
    duplicate: int = 0
    reordered: int = 0
    corrupt: int = 0
    misrouted: int = 0
    stalls: int = Field(default=0, description="packets that took 200 ms longer than the one before")
    loss_percent: float | None = None
    missing_percent: float | None = None


class TimingResult(_Model):
    """One thing that users do: how often, how long it took, and how it failed."""

    count: int
    failed: int
    took: Percentiles
    failures: dict[str, int]


class Generator(_Model):
    """How the load tester itself was. In a void window it was too late to judge anybody."""

    windows: int
    void_windows: int
    void_percent: float
    lateness: Percentiles
    engine_cores: float = Field(description="CPU seconds in a second, of the packet engines")
    process_cores: float = Field(description="CPU seconds in a second, of the processes, engines included")


class RelayResult(_Model):
    """What the relay's own metrics said."""

    cores: float | None
    microseconds_per_packet: float | None = Field(description="CPU time of the relay for each packet in or out")
    drops: dict[str, int]
    resident_bytes: float | None = Field(default=None, description="memory of its process at the end")
    memory_growth_percent: float | None = Field(default=None, description="of that, since a quarter of the test")


class Second(_Model):
    """One second, for charts."""

    second: float
    users: int
    streams: int
    sent: int
    received: int
    lost: int
    late: int
    errors: int
    delay_p50_ms: float | None
    delay_p99_ms: float | None
    delay_p999_ms: float | None
    jitter_p95_ms: float | None
    mos: float | None
    lateness_p99_ms: float | None
    generator_cores: float
    relay_cores: float | None
    void: bool


class TargetResult(_Model):
    """Whom the load went to. There is no secret in it."""

    name: str
    server: str
    carrier: str


class Result(_Model):
    """All of a test."""

    format: Literal["relay-loadtest-result/1"] = FORMAT
    passed: bool
    interrupted: bool
    reasons: list[str] = Field(description="why it has not passed, for people, besides checks that have failed")
    started_at: float = Field(description="Unix time")
    seconds: float
    judged_from_s: float
    judged_seconds: int
    profile: str
    description: str
    users: int
    target: TargetResult
    checks: list[Check]
    packets: Packets
    delay: Percentiles
    added_delay_p99_ms: float | None = Field(description="above the fastest packet of the test")
    jitter: Percentiles
    mos: float | None
    mos_of_stream_seconds: dict[str, int] = Field(description="how many seconds of streams had a MOS of this or more")
    timings: dict[str, TimingResult]
    generator: Generator
    relay: RelayResult | None
    waits: dict[str, Percentiles] = Field(
        default={}, description="what has not come by the time when users were stopped, and how long they had waited"
    )
    user_errors: dict[str, int] = Field(
        default={},
        description="what the code of users has raised and nobody has caught, and how often: the most frequent",
    )
    incidents: list[str]
    environment: dict[str, str]
    intervals: list[Second]

    @property
    def why(self) -> list[str]:
        """Everything that has failed it: checks, and other reasons."""
        return [f"{check.name}: {check.words}" for check in self.checks if not check.passed] + self.reasons

    def text(self) -> str:
        """As JSON."""
        return self.model_dump_json(indent=1)


def schema() -> dict[str, Any]:
    """The JSON Schema of results."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Result.model_json_schema()}


def load(path: Path) -> Result:
    """A result that was written: each figure has its type, and is a finite number. Raises OperatorError."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise OperatorError(f"{path}: expected at most {MAX_FILE_BYTES} bytes")
        tree = json.loads(text)
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            raise OperatorError(f"{path}: expected a result with format {FORMAT}")
        return Result.model_validate_json(text, strict=True)
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise OperatorError(f"{path}: {explain(error)[0]}") from None
    except ValueError as error:
        raise OperatorError(f"{path}: {error}; expected JSON") from None
    except RecursionError:
        raise OperatorError(f"{path}: lists and objects are nested too deeply; expected a result") from None
