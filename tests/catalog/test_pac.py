"""The PAC as browsers run it, in node: it and the catalog agree on every name."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay import catalog
from relay.catalog import render_pac
from relay.errors import OperatorError

CATALOG = catalog.load()
PROXY = "relay.firm.example:3128"
NAMES = [
    *(host.name for host in CATALOG.hosts),
    *("C9REST.xhoot.com", "c9rest.xhoot.com.", "new.xhoot.com", "new.use1.prod1.xhoot.com", "prod1.xhoot.com"),
    *("xhoot.com", "a.b.xhoot.com", "evilxhoot.com", "xhoot.com.example", "c9rest.xhoot.com.example", "localhost"),
    *("constructor", "a.constructor", "hasOwnProperty", "a.toString", "__proto__", "a.__proto__", ""),
    *("54.174.51.240", "::1", "a..xhoot.com", ".xhoot.com", "x.example"),
]


def answers(pac: str, names: list[str]) -> dict[str, str]:
    """What FindProxyForURL says, in a context that has none of the helper functions."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    program = (
        "const { pac, names } = JSON.parse(require('fs').readFileSync(0, 'utf8'));"
        "const context = require('vm').createContext({});"
        "require('vm').runInContext(pac, context);"
        "const found = names.map(n => [n, context.FindProxyForURL('https://' + n + '/', n)]);"
        "console.log(JSON.stringify(found));"
    )
    given = json.dumps({"pac": pac, "names": names})
    done = subprocess.run([node, "-e", program], input=given, capture_output=True, text=True, timeout=60, check=True)
    return dict(json.loads(done.stdout))


def test_proxy_for_the_catalogs_names_only() -> None:
    found = answers(render_pac(CATALOG, PROXY), NAMES)
    assert found == {name: f"PROXY {PROXY}" if CATALOG.covers(name) else "DIRECT" for name in NAMES}
    assert set(found.values()) == {f"PROXY {PROXY}", "DIRECT"}


def test_hosts_only() -> None:
    found = answers(render_pac(CATALOG, PROXY, hosts_only=True), NAMES)
    assert found == {name: f"PROXY {PROXY}" if CATALOG.find(name) else "DIRECT" for name in NAMES}


def test_agrees_with_the_catalog_on_any_name() -> None:
    labels = st.sampled_from(
        ["a", "A", "-", "a-b", "0", "", "xhoot", "XHOOT", "com", "com.", "prod1", "use1", "euc1", "é"]
    )
    seen: list[str] = []

    @settings(max_examples=500, database=None)
    @given(st.lists(labels, max_size=6).map(".".join), st.sampled_from(["", ".xhoot.com", ".use1.prod1.xhoot.com"]))
    def collect(start: str, end: str) -> None:
        seen.append(start + end)

    collect()
    # A label may not begin or end with a hyphen; the PAC does not care, since no such name has an address.
    names = [name for name in seen if "-" not in set(name.split("."))]
    found = answers(render_pac(CATALOG, PROXY), names)
    assert {name for name in names if found[name] != "DIRECT"} == {name for name in names if CATALOG.covers(name)}


@pytest.mark.parametrize(
    ("proxy", "answer"),
    [
        ("10.20.0.5:3128", "PROXY 10.20.0.5:3128"),
        ("[2001:DB8::5]:3128", "PROXY [2001:db8::5]:3128"),
        ("HTTPS relay.firm.example:443", "HTTPS relay.firm.example:443"),
        ("PROXY a.example:1; PROXY b.example:2;DIRECT", "PROXY a.example:1; PROXY b.example:2; DIRECT"),
    ],
)
def test_proxies(proxy: str, answer: str) -> None:
    assert answers(render_pac(CATALOG, proxy), ["c9rest.xhoot.com"]) == {"c9rest.xhoot.com": answer}


@pytest.mark.parametrize(
    "proxy",
    [
        "",
        "relay",
        "relay:",
        "relay:0",
        "relay:65536",
        "a:1;",
        "GOPHER a:1",
        "PROXY a",
        'a"; evil();//:1',
        "a\n:1",
        "::1:1",
    ],
)
def test_what_is_no_proxy(proxy: str) -> None:
    with pytest.raises(OperatorError, match="proxy"):
        render_pac(CATALOG, proxy)


def test_old_engines_can_read_it() -> None:
    """ECMAScript 3, ASCII: no arrow functions, no let, no trailing commas."""
    text = render_pac(CATALOG, PROXY)
    assert text.isascii()
    assert not {"let ", "const ", "=>", "`"} & {word for word in ("let ", "const ", "=>", "`") if word in text}
    assert ",}" not in "".join(text.split())
