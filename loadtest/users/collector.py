"""Once a second: what the packet engine has counted and users have measured goes to the record.

A worker gives it to Locust's own report to the master, every three seconds. Only the master, or a process that is
alone, has the record; it also looks at the relay's metrics, and notes workers that are gone.
"""

from __future__ import annotations

import logging
import math
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import gevent
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner
from prometheus_client.parser import text_string_to_metric_families

from loadtest import direct
from loadtest.figures.interval import Interval
from loadtest.figures.record import (
    Incident,
    Record,
    RelayFigures,
    line_of_incident,
    line_of_interval,
    line_of_relay,
)
from loadtest.plan.work import RECORD_LOST, Work
from loadtest.users import lines
from loadtest.users.listening import Ear
from loadtest.users.measuring import MEASURES
from relay.errors import UpstreamError

log = logging.getLogger("loadtest")

FIELD = "loadtest"
# A worker whose master does not take its reports keeps the last minutes.
MAX_UNREPORTED = 600
METRICS_EVERY_S = 2
METRICS_TIMEOUT_S = 2.0
# An hour with a worker that comes and goes each second.
MAX_INCIDENTS = 1000


class Sheet:
    """The record of this process: a file if there is one, and the same in memory for the web page."""

    def __init__(self, path: str) -> None:
        self.record = Record()
        self._file: IO[str] | None = Path(path).open("a", encoding="utf-8") if path else None  # noqa: SIM115
        self.trouble = ""

    def interval(self, interval: Interval) -> None:
        """Note an interval."""
        self.record.add(interval)
        self._write(line_of_interval(interval))

    def incident(self, text: str) -> None:
        """Note what went wrong."""
        log.error(text)
        if len(self.record.incidents) < MAX_INCIDENTS:
            incident = Incident(int(time.time()), text)
            self.record.incidents.append(incident)
            self._write(line_of_incident(incident))

    def relay(self, figures: RelayFigures) -> None:
        """Note a look at the relay."""
        self.record.relay.append(figures)
        self._write(line_of_relay(figures))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                self._fail(error)
            self._file = None

    def _write(self, line: str) -> None:
        if self._file is None:
            return
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        # Told once. The test ends: what cannot be written is not worth the load.
        if not self.trouble:
            self.trouble = f"the record cannot be written: {error.strerror}"
            log.error(self.trouble)


class Collector:
    """Runs from the start of a test in each process until its end."""

    def __init__(self, environment: Environment, work: Work) -> None:
        self._environment = environment
        self._work = work
        self._runner = environment.runner
        self._is_worker = isinstance(self._runner, WorkerRunner)
        self.sheet = Sheet("" if self._is_worker else work.record)
        self._unreported: list[Interval] = []
        self._missing: set[str] = set()
        self._cpu_s = _cpu_s()
        self._second = 0
        self._ear = Ear(environment, MEASURES, work.profile.media.playout_ms)
        self._running = gevent.spawn(self._run)
        self._looking = gevent.spawn(self._look) if not self._is_worker and work.target.metrics else None

    def stop(self) -> None:
        """Take what there is, and end."""
        for one in (self._running, self._looking):
            if one is not None:
                one.kill()
        self.tick()
        self.sheet.close()

    def _run(self) -> None:
        begun = time.monotonic()
        for second in range(1, 1 << 40):
            gevent.sleep(max(0.0, begun + second - time.monotonic()))
            self.tick()
            if self.sheet.trouble and self._runner is not None:
                self._environment.process_exit_code = RECORD_LOST
                # This greenlet is one of those that end with the runner.
                gevent.spawn(self._runner.quit)
                return

    def tick(self) -> None:
        """What has happened since the last one."""
        if isinstance(self._runner, MasterRunner):
            self._watch_workers(self._runner)
        else:
            interval = self._interval()
            if self._is_worker:
                self._unreported = [*self._unreported[-MAX_UNREPORTED:], interval]
            else:
                self.sheet.interval(interval)

    def _interval(self) -> Interval:
        board = lines.present_switchboard()
        window = board.window() if board is not None else None
        if window is not None:
            self._ear.hear(window)
        interval = MEASURES.take()
        # Two ticks within a second must not count users twice.
        interval.second = self._second = max(int(time.time()), self._second + 1)
        interval.users = self._runner.user_count if self._runner is not None else 0
        cpu_s = _cpu_s()
        interval.process_cpu_s, self._cpu_s = cpu_s - self._cpu_s, cpu_s
        if board is not None and window is not None:
            interval.counters.update(window.counters)
            interval.delay, interval.lateness, interval.jitter = window.delay, window.lateness, window.jitter
            interval.engine_cpu_s = window.cpu_seconds
            interval.streams = board.streams
        interval.judge_window()
        return interval

    # Between a worker and its master

    def report(self, data: dict[str, Any]) -> None:
        """Give the master what it has not had."""
        data[FIELD] = [interval.plain() for interval in self._unreported]
        self._unreported = []

    def take_report(self, client_id: str, data: dict[str, Any]) -> None:
        """Take what a worker has seen. What is not as it should be is an incident."""
        try:
            for plain in data.get(FIELD, []):
                self.sheet.interval(Interval.read(plain))
        except (KeyError, TypeError, ValueError) as error:
            self.sheet.incident(f"worker {client_id}: its report cannot be read ({error!r}); is it of another version?")

    def _watch_workers(self, runner: MasterRunner) -> None:
        gone = {str(client.id) for client in runner.clients.missing} - self._missing
        for client_id in gone:
            self._missing.add(client_id)
            self.sheet.incident(f"worker {client_id} is gone: it has sent no heartbeat")

    # The relay

    def _look(self) -> None:
        told = False
        while True:
            try:
                figures = relay_figures(str(self._work.target.metrics))
            except UpstreamError as error:
                figures = RelayFigures(int(time.time()), None, {})
                if not told:
                    log.warning("the relay's metrics: %s", error)
                    told = True
            self.sheet.relay(figures)
            gevent.sleep(METRICS_EVERY_S)


def relay_figures(url: str) -> RelayFigures:
    """CPU time, drops and memory, as the relay's metrics have them.

    Raises UpstreamError if it does not answer with metrics.
    """
    cpu_s: float | None = None
    resident_bytes: float | None = None
    drops: dict[str, float] = {}
    text = direct.ask("GET", url, timeout_s=METRICS_TIMEOUT_S)
    try:
        for name, labels, value in _samples(text):
            # NaN and infinity are values of metrics, but not of a CPU.
            if not math.isfinite(value):
                continue
            if name == "process_cpu_seconds_total":
                cpu_s = value
            elif name == "process_resident_memory_bytes":
                resident_bytes = value
            elif name == "relay_drops_total" and value:
                drops[labels.get("reason", "")] = value
    except ValueError as error:
        raise UpstreamError(f"{url}: {error}; expected metrics as Prometheus reads them") from None
    return RelayFigures(int(time.time()), cpu_s, drops, resident_bytes)


def _samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, dict(sample.labels), float(sample.value)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
