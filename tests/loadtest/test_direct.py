"""Requests of the load tester go to the host that was checked, whatever the environment or a server says."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from loadtest import direct
from loadtest.plan.target import Target
from loadtest.running.faults import Faults
from loadtest.running.targets import check_target
from relay.errors import OperatorError, UpstreamError
from tests.loadtest.running.driver import small

METRICS = b"process_cpu_seconds_total 1.5\n"


@dataclass
class Server:
    """Answers everything alike, and knows what it was asked."""

    status: int = 200
    location: str = ""
    body: bytes = METRICS
    asked: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            server.asked.append(f"{self.command} {self.path}")
            self.send_response(server.status)
            if server.location:
                self.send_header("Location", server.location)
            self.send_header("Content-Length", str(len(server.body)))
            self.end_headers()
            self.wfile.write(server.body)

        do_GET = do_PUT = do_DELETE = answer  # noqa: N815 - as http.server wants them

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


@pytest.fixture
def elsewhere() -> Iterator[Server]:
    """Where nothing may go."""
    with serving(Server()) as server:
        yield server
        assert server.asked == []


@pytest.fixture
def proxied(elsewhere: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that names a proxy for everything."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, elsewhere.url)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_a_proxy_of_the_environment_is_not_asked(proxied: None) -> None:
    with serving(Server()) as server:
        assert direct.ask("GET", f"{server.url}/metrics", timeout_s=10) == METRICS.decode()
        assert server.asked == ["GET /metrics"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_a_redirect_is_not_followed(elsewhere: Server, status: int, method: str) -> None:
    with (
        serving(Server(status, location=f"{elsewhere.url}/x")) as server,
        pytest.raises(
            UpstreamError, match=rf"{method} {server.url}/: {status} leads to '{elsewhere.url}/x', and a load"
        ),
    ):
        direct.ask(method, f"{server.url}/", timeout_s=10, body={"a": 1} if method == "PUT" else None)


def test_what_else_a_server_may_say() -> None:
    with serving(Server(422, body=b"no such fault")) as server, pytest.raises(UpstreamError, match="422 no such fault"):
        direct.ask("GET", server.url, timeout_s=10)
    with pytest.raises(UpstreamError, match=rf"GET {server.url}: .*Connection refused"):
        direct.ask("GET", server.url, timeout_s=10)


def test_faults_are_asked_of_the_cloud_itself(elsewhere: Server, proxied: None) -> None:
    profile = small(faults=[{"hop": "web_proxy", "kind": "stall"}])
    with serving(Server()) as server:
        with Faults(profile, Target.model_validate({"server": "127.0.0.1:9", "control": server.url})) as faults:
            faults.look(0)
        path = "/emulator/v1/faults/web_proxy/stall"
        assert server.asked == [f"PUT {path}", f"DELETE {path}"]
        server.status, server.location = 307, f"{elsewhere.url}/"
        with (
            Faults(profile, Target.model_validate({"server": "127.0.0.1:9", "control": server.url})) as faults,
            pytest.raises(OperatorError, match="307 leads to"),
        ):
            faults.look(0)


def figures_of(url: str) -> str:
    """In a process of its own: the module imports Locust."""
    program = f"from loadtest.users.collector import relay_figures; print(relay_figures({url!r}).cpu_s)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=100)
    return done.stdout + done.stderr


def test_metrics_are_those_of_the_relay_itself(elsewhere: Server, proxied: None) -> None:
    with serving(Server()) as server:
        assert figures_of(server.url).split() == ["1.5"]
        server.status, server.location = 302, f"{elsewhere.url}/"
        assert "302 leads to" in figures_of(server.url)
        assert len(server.asked) == 2


def test_what_is_asked_during_the_test_answers_before_it(elsewhere: Server) -> None:
    """Who would wait for an hour to hear that there are no metrics?"""
    profile, faulty = small(), small(faults=[{"hop": "web_proxy", "kind": "stall"}])
    with serving(Server(302, location=f"{elsewhere.url}/")) as server:
        with pytest.raises(OperatorError, match=r"--target 127\.0\.0\.1:9: metrics: GET \S+: 302 leads to"):
            check_target(profile, "127.0.0.1:9", {"metrics": server.url})
        with pytest.raises(OperatorError, match=r"GET \S+/emulator/v1/faults: 302 leads to"):
            check_target(faulty, "127.0.0.1:9", {"control": server.url})
    with pytest.raises(OperatorError, match=r"--target 127\.0\.0\.1:9: metrics: GET \S+: .*Connection refused"):
        check_target(profile, "127.0.0.1:9", {"metrics": server.url})
