"""The configuration: defaults, paths and addresses, and one clear line for each kind of mistake."""

from __future__ import annotations

import ipaddress
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from relay import config
from relay.addresses import Address, UnixSocket
from relay.config import Config
from relay.errors import OperatorError

PROJECT = Path(__file__).parent.parent
CERTIFICATES = '[[certificates]]\ncertificate = "cert.pem"\nprivate_key = "key.pem"\n'
UPSTREAM = '[[upstreams]]\nname = "stun1"\naddress = "192.0.2.7:3478"\n'
MINIMAL = CERTIFICATES + UPSTREAM

# As the first design had it, word for word: what was once written goes on to work.
SAMPLE = """
[listen]
tls = ["0.0.0.0:443"]             # HTTPS, WebSocket and TURN/TLS, all on this port
web_proxy = []                    # explicit proxy (CONNECT + PAC), e.g. ["0.0.0.0:3128"]
admin = "127.0.0.1:9443"          # plain HTTP: /healthz /readyz /metrics /api/... and the dashboard
workers = 0                       # data-plane threads; 0 = one per core
plane = "compiled"                # or "reference"

[[certificates]]                  # several: chosen by server name, the first is the default
certificate = "cert.pem"          # PEM chain
private_key = "key.pem"

[[upstreams]]
name = "use1-stun1"
region = "use1"
address = "127.0.0.1:3478"        # UDP TURN server, host:port

[[routes]]                        # optional: server name -> region; the default is the healthiest upstream
server_name = "*.use1.prod1.xhoot.com"
region = "use1"

[signaling]
upstreams = ["http://127.0.0.1:8080"]   # socket.io and REST behind the same name
"""


def load(folder: Path, text: str) -> Config:
    path = folder / "relay.toml"
    path.write_text(text, encoding="utf-8")
    return config.load(path)


def mistakes(folder: Path, text: str) -> list[str]:
    """What is said of a file, line by line, without the file's name at the front of each."""
    with pytest.raises(OperatorError) as refused:
        load(folder, text)
    lines = str(refused.value).splitlines()
    source = f"{folder / 'relay.toml'}: "
    assert all(line.startswith(source) for line in lines)
    return [line.removeprefix(source) for line in lines]


# What is accepted


def test_defaults(tmp_path: Path) -> None:
    settings = load(tmp_path, MINIMAL)
    assert settings.listen.tls == (Address("0.0.0.0", 443),)
    assert settings.listen.admin == Address("127.0.0.1", 9443)
    assert settings.listen.plane == "compiled"
    assert settings.upstreams[0].region == "default"
    assert (settings.routes, settings.signaling.upstreams) == ((), ())
    assert (settings.health.interval_s, settings.health.fall, settings.health.rise) == (1, 3, 2)
    assert settings.limits.connections == 20_000
    assert (settings.limits.lame_duck_s, settings.limits.drain_timeout_s) == (8, 30)
    # Within 5 s of the last answer of its upstream a client is closed.
    assert settings.limits.upstream_silence_s == 4
    assert (settings.log.level, settings.log.format) == ("info", "text")
    assert (settings.media.max_media_age_ms, settings.quality.playout_deadline_ms) == (200, 60)
    assert (settings.quality.payload_types, settings.quality.records) == ({}, None)
    assert (settings.capture.allowed, settings.capture.max_seconds, settings.capture.max_bytes) == (False, 300, 1 << 26)


def test_sample_of_the_design(tmp_path: Path) -> None:
    settings = load(tmp_path, SAMPLE)
    assert settings.upstreams[0].address == Address("127.0.0.1", 3478)
    assert settings.routes[0].server_name == "*.use1.prod1.xhoot.com"
    assert settings.signaling.upstreams == ("http://127.0.0.1:8080",)
    assert settings.signaling.configured


def test_web_proxy(tmp_path: Path) -> None:
    text = """
        [listen]
        web_proxy = ["0.0.0.0:3128"]
        [web_proxy]
        allow = ["*.Example.com", "www.example.org:8443", "10.1.2.3:443", "[2606:4700::1111]", "2606:4700::1112"]
        allowed_networks = ["10.1.0.0/16"]
        users = { alice = "sesame" }
        advertise = "proxy.firm.example:3128"
    """
    settings = load(tmp_path, MINIMAL + text)
    assert [str(one) for one in settings.web_proxy.allow] == [
        "*.example.com:443",
        "www.example.org:8443",
        "10.1.2.3:443",
        "[2606:4700::1111]:443",
        "[2606:4700::1112]:443",
    ]
    assert "sesame" not in repr(settings)


NAMED = "of 1 to 128 characters, without colons and control characters"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('allow = ["*"]', "web_proxy.allow.0: '*': expected a host name"),
        ('allow = ["a b"]', "web_proxy.allow.0: "),
        ('allow = ["a.test:0"]', "web_proxy.allow.0: 'a.test:0': expected a server's port"),
        ('allow = ["a.test:https"]', "web_proxy.allow.0: "),
        ("allow = [1]", "web_proxy.allow.0: 1: expected a string"),
        ('allow = ["10.0.0.1"]', "web_proxy.allow.0: 10.0.0.1 is a special address: add it to allowed_networks, too"),
        ('allow = ["[::ffff:10.0.0.1]:80"]', "web_proxy.allow.0: ::ffff:a00:1 is a special address"),
        ('allowed_networks = ["10.0.0.1/8"]', "web_proxy.allowed_networks.0: "),
        *(
            (f"users = {{ {key} = 'x' }}", f"web_proxy.users.{key}: expected a user name {NAMED}")
            for key in ('"a:b"', '""', r'"a\u001b[2J"', f'"{"ä" * 129}"')
        ),
        ('users = { alice = "" }', "web_proxy.users.alice: expected at least one character"),
        ("users = { alice = 123456 }", "web_proxy.users.alice: "),
        ('advertise = "proxy.firm.example"', "web_proxy.advertise: "),
        ("idle_timeout_s = 0", "web_proxy.idle_timeout_s: "),
        ("connections = -1", "web_proxy.connections: "),
    ],
)
def test_web_proxy_mistakes(tmp_path: Path, line: str, expected: str) -> None:
    with pytest.raises(OperatorError) as raised:
        load(tmp_path, MINIMAL + f"[web_proxy]\n{line}\n")
    assert expected in str(raised.value)
    assert "123456" not in str(raised.value)


def test_behind_a_balancer(tmp_path: Path) -> None:
    listen = '[listen]\ntls = ["10.0.0.1:443", "[::1]:443"]\nproxy_protocol = ["[::0:1]:443"]\n'
    settings = load(tmp_path, MINIMAL + listen + '[balancers]\nnetworks = ["10.0.0.8/31", "fd00::7"]\n')
    assert settings.listen.proxy_protocol == (Address("::1", 443),)
    assert [str(network) for network in settings.balancers.networks] == ["10.0.0.8/31", "fd00::7/128"]


def test_certificates_of_clients(tmp_path: Path) -> None:
    keys = 'tls = ["[::]:443"]\nclient_certificates = { "[0::0]:443" = "optional" }\nclient_ca = "ca.pem"\n'
    settings = load(tmp_path, f"[listen]\n{keys}{MINIMAL}")
    assert settings.listen.client_certificates == {Address("::", 443): "optional"}
    assert settings.listen.client_ca == tmp_path / "ca.pem"
    assert config.parse(settings.model_dump(), folder=Path("/"), source="dump") == settings


def test_where_the_admin_listener_may_be(tmp_path: Path) -> None:
    def admin(keys: str) -> config.ListenSettings:
        return load(tmp_path, f"{MINIMAL}[listen]\n{keys}\n[admin]\ntoken_hash = '{TOKEN_HASH}'\n").listen

    for address, remote in (("127.9.9.9:1", False), ("[::1]:1", False), ("0.0.0.0:1", True), ("[fd00::1]:1", True)):
        listen = admin(f'admin = "{address}"')
        assert (str(listen.admin), listen.admin_is_remote, listen.admin_has_tls) == (address, remote, remote)
    assert not admin('admin = "0.0.0.0:1"\nadmin_unprotected = true').admin_has_tls
    for path, whole in (("/run/a.sock", "/run/a.sock"), ("a.sock", f"{tmp_path}/a.sock")):
        listen = admin(f'admin = "unix:{path}"')
        assert (listen.admin, listen.admin_is_remote) == (UnixSocket(whole), False)
        assert str(listen.admin) == f"unix:{whole}"
    load(tmp_path, MINIMAL + '[listen]\nadmin = "0.0.0.0:9443"\nadmin_unprotected = true\n')


def test_listeners_that_do_not_collide(tmp_path: Path) -> None:
    listen = """
        [listen]
        tls = ["0.0.0.0:443", "[::]:443", "127.0.0.1:0", "0.0.0.0:0"]
        web_proxy = ["10.0.0.1:3128", "10.0.0.2:3128", "[fe80::1%eth0]:3128", "[fe80::1%eth1]:3128"]
        admin = "127.0.0.1:0"
    """
    assert len(load(tmp_path, MINIMAL + listen).listen.listeners()) == 9


def test_zones_are_kept(tmp_path: Path) -> None:
    listen = '[listen]\ntls = ["[fe80::1%eth0]:443"]\nadmin = "[fe80::1%2]:9443"\nadmin_unprotected = true\n'
    upstream = '[[upstreams]]\nname = "stun1"\naddress = "[fe80::7%eth1]:3478"\n'
    settings = load(tmp_path, CERTIFICATES + upstream + listen + '[media]\nsource_addresses = ["fe80::1%eth0"]\n')
    assert settings.listen.tls == (Address("fe80::1%eth0", 443),)
    assert settings.listen.admin == Address("fe80::1%2", 9443)
    assert settings.upstreams[0].address == Address("fe80::7%eth1", 3478)
    assert settings.media.source_of_version(6) == "fe80::1%eth0"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[listen]\ntls = ["[fe80::1]:443"]', "listen.tls.0: '[fe80::1]:443': expected the interface"),
        ('[listen]\nweb_proxy = ["[fe80::1]:443"]', "listen.web_proxy.0: '[fe80::1]:443': expected the interface"),
        ('[listen]\nadmin = "[fe80::1]:443"', "listen.admin: '[fe80::1]:443': expected the interface"),
        ('[media]\nsource_addresses = ["fe80::1"]', "media.source_addresses.0: 'fe80::1': expected the interface"),
        (UPSTREAM.replace("192.0.2.7", "[fe80::7]").replace("stun1", "2"), "upstreams.1.address: '[fe80::7]:3478': "),
    ],
)
def test_a_link_local_address_needs_its_zone(tmp_path: Path, text: str, expected: str) -> None:
    (line,) = mistakes(tmp_path, f"{MINIMAL}{text}\n")
    assert line.startswith(expected)


@pytest.mark.parametrize("path", sorted((PROJECT / "deploy").glob("*.toml")), ids=lambda path: path.name)
def test_shipped_files_load(path: Path) -> None:
    config.load(path)


def toml_blocks(page: Path) -> list[dict[str, Any]]:
    return [tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", page.read_text(), flags=re.DOTALL)]


def test_the_examples_of_the_pages_load(tmp_path: Path) -> None:
    """The first in configuration.md is whole. The others are added to it, or replace its tables."""
    [whole] = toml_blocks(PROJECT / "docs" / "configuration.md")
    pages = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
    examples = [(page, tree) for page in pages for tree in toml_blocks(page)]
    assert len(examples) > 3
    for page, tree in examples:
        config.parse({**whole, **tree}, folder=tmp_path, source=page.name)


def fields_below(model: type[BaseModel]) -> set[str]:
    """The names of all settings of a section, also those of the lists in it."""
    names = set(model.model_fields)
    for field in model.model_fields.values():
        for one in models_in(field.annotation):
            names |= fields_below(one)
    return names


def models_in(annotation: Any) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {model for argument in get_args(annotation) for model in models_in(argument)}


@pytest.mark.parametrize("section", list(Config.model_fields))
def test_the_sample_has_every_setting(section: str) -> None:
    """At the beginning of a line, or as a comment where it has no default, or one that is nothing."""
    parts = re.split(r"^\[+(\w+)\]+.*\n", (PROJECT / "deploy" / "relay.toml").read_text(), flags=re.MULTILINE)
    text = "".join(body for name, body in zip(parts[1::2], parts[2::2], strict=True) if name == section)
    there = set(re.findall(r"^(?:# ?)?(?:\[\[\w+\.)?(\w+)(?: =|\]\])", text, re.MULTILINE))
    [model] = models_in(Config.model_fields[section].annotation)
    assert fields_below(model) - there == set()


def test_the_sample_says_the_defaults() -> None:
    sample = config.load(PROJECT / "deploy" / "relay.toml")
    default = Config(certificates=sample.certificates, upstreams=sample.upstreams, routes=sample.routes)
    assert sample == default


def test_relative_paths_count_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "etc"
    elsewhere.mkdir()
    folder.mkdir()
    absolute = CERTIFICATES.replace('"', '"/certificates/', 1).replace('= "key', '= "/keys/key')
    (folder / "relay.toml").write_text(MINIMAL + absolute)
    monkeypatch.chdir(elsewhere)
    relative, other = config.load(Path("../etc/relay.toml")).certificates
    assert (relative.certificate, relative.private_key) == (Path("../etc/cert.pem"), Path("../etc/key.pem"))
    assert (other.certificate, other.private_key) == (Path("/certificates/cert.pem"), Path("/keys/key.pem"))


@pytest.mark.parametrize(("certificate", "key"), [("*.pem", "key.pem"), ("cert.pem", "*.key"), ("*/*.pem", "*/*.key")])
def test_a_pattern_of_certificates_has_a_star_in_both(tmp_path: Path, certificate: str, key: str) -> None:
    section = f'[[certificates]]\ncertificate = "{certificate}"\nprivate_key = "{key}"\n'
    assert mistakes(tmp_path, MINIMAL + section) == [
        "certificates.1: expected one * in certificate and one in private_key, or none in both"
    ]


def test_quality(tmp_path: Path) -> None:
    quality = load(
        tmp_path,
        MINIMAL
        + '[quality]\nplayout_deadline_ms = 40\npayload_types = {111 = 48000, 96 = 90000}\nrecords = "calls.jsonl"\n',
    ).quality
    assert (quality.playout_deadline_ms, quality.payload_types) == (40, {111: 48000, 96: 90000})
    assert quality.records == tmp_path / "calls.jsonl"
    assert (quality.calls, quality.calls_kept_days, quality.calls_max_bytes) == (None, 30, 1 << 30)
    kept = load(tmp_path, MINIMAL + '[quality]\ncalls = "calls.db"\ncalls_kept_days = 0\n').quality
    assert (kept.calls, kept.calls_kept_days) == (tmp_path / "calls.db", 0)


def test_catalog(tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL).catalog.path is None
    assert load(tmp_path, MINIMAL + '[catalog]\npath = "cloud9.toml"\n').catalog.path == tmp_path / "cloud9.toml"


def test_entitlement(tmp_path: Path) -> None:
    entitlement = load(
        tmp_path,
        MINIMAL + '[entitlement]\npolicy = "http"\nurl = "https://a.test/voice?site=ny"\nca = "ca.pem"\n'
        'token = "hunter2"\nfail = "open"\n',
    ).entitlement
    assert (entitlement.ca, entitlement.fail) == (tmp_path / "ca.pem", "open")
    assert "hunter" not in repr(entitlement)
    listed = load(tmp_path, MINIMAL + '[entitlement]\npolicy = "file"\nfile = "users.toml"\n').entitlement
    assert (listed.file, listed.fail, listed.rest_usernames) == (tmp_path / "users.toml", "closed", True)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_a_token_may_go_to_this_machine_in_clear(tmp_path: Path, host: str) -> None:
    load(tmp_path, MINIMAL + f'[entitlement]\npolicy = "http"\nurl = "http://{host}:8080/"\ntoken = "a"\n')


def test_ipv6_everywhere(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        CERTIFICATES
        + '[[upstreams]]\nname = "stun1"\naddress = "[2001:DB8:0::7]:3478"\n'
        + '[listen]\ntls = ["[::]:443", "0.0.0.0:443"]\nadmin = "[::1]:9443"\n'
        + '[media]\nsource_addresses = ["2001:db8:0::1", "192.0.2.1"]\nallowed_networks = ["fd00::/8", "10.0.0.0/8"]\n',
    )
    assert settings.listen.tls == (Address("::", 443), Address("0.0.0.0", 443))
    assert settings.listen.admin == Address("::1", 9443)
    assert settings.upstreams[0].address == Address("2001:db8::7", 3478)
    assert str(settings.upstreams[0].address) == "[2001:db8::7]:3478"
    assert settings.media.source_of_version(6) == "2001:db8::1"
    assert settings.media.source_of_version(4) == "192.0.2.1"
    assert (settings.media.origins, settings.media.own_credentials) == ((), False)
    assert settings.media.allowed_networks == (ipaddress.ip_network("fd00::/8"), ipaddress.ip_network("10.0.0.0/8"))


def test_no_source_address_lets_the_kernel_choose(tmp_path: Path) -> None:
    media = load(tmp_path, MINIMAL + '[media]\nsource_addresses = ["192.0.2.1"]\n').media
    assert media.source_of_version(6) is None


def test_upstream_by_name_and_server_name_in_any_case(tmp_path: Path) -> None:
    text = CERTIFICATES + UPSTREAM.replace("192.0.2.7", "turn.example.com")
    settings = load(tmp_path, text + '[[routes]]\nserver_name = "*.Example.COM."\nregion = "default"\n')
    assert not settings.upstreams[0].address.is_literal
    assert settings.routes[0].server_name == "*.example.com"


def test_settings_can_be_dumped_and_read_again(tmp_path: Path) -> None:
    settings = load(tmp_path, SAMPLE)
    assert config.parse(settings.model_dump(), folder=Path("/"), source="dump") == settings


# Mistakes: key, value, what was expected

TOKEN_HASH = "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

WRONG = [
    ("[listen]\nport = 443\n", "listen.port: unknown key"),
    ("[lissten]\n", "lissten: unknown key"),
    ("listen = 443\n", "listen: 443: expected a table of keys and values"),
    ('[listen]\ntls = "0.0.0.0:443"\n', "listen.tls: '0.0.0.0:443': expected a list"),
    ("[listen]\ntls = []\n", "listen.tls: expected at least one"),
    ("[listen]\ntls = [443]\n", "listen.tls.0: 443: expected a string such as '192.0.2.7:3478'"),
    (
        '[listen]\ntls = ["[::]:443", "localhost:443"]\n',
        "listen.tls.1: 'localhost:443': expected an IP address to listen on, for example 0.0.0.0:443 or [::]:443",
    ),
    (
        '[listen]\nadmin = "::1:9443"\n',
        "listen.admin: '::1:9443': an IPv6 address needs brackets, for example [::1]:443",
    ),
    (
        '[listen]\nadmin = "[::z]:9443"\n',
        "listen.admin: '[::z]:9443': expected an IPv6 address in the brackets, for example [::1]:443",
    ),
    (
        '[listen]\nclient_certificates = { "0.0.0.0:443" = "demanded" }\nclient_ca = "ca.pem"\n',
        "listen.client_certificates.\"0.0.0.0:443\": 'demanded': expected 'optional' or 'required'",
    ),
    (
        '[listen]\nclient_certificates = { "0.0.0.0:8443" = "required" }\nclient_ca = "ca.pem"\n',
        "listen.client_certificates: 0.0.0.0:8443: expected an address of tls",
    ),
    (
        '[listen]\nclient_certificates = { "localhost:443" = "required" }\nclient_ca = "ca.pem"\n',
        "listen.client_certificates.\"localhost:443\": 'localhost:443': expected an IP address to listen on, for"
        " example 0.0.0.0:443 or [::]:443",
    ),
    (
        '[listen]\nclient_certificates = { "0.0.0.0:443" = "required" }\n',
        "listen.client_ca: expected a file with authorities, because of client_certificates",
    ),
    (
        '[listen]\nclient_ca = "ca.pem"\n',
        "listen.client_certificates: expected some, because of client_ca: now nobody is asked for one",
    ),
    (
        '[listen]\nproxy_protocol = ["0.0.0.0:8443"]\n[balancers]\nnetworks = ["10.0.0.0/8"]\n',
        "listen.proxy_protocol.0: expected an address of tls or web_proxy, not 0.0.0.0:8443",
    ),
    (
        '[listen]\nproxy_protocol = ["0.0.0.0:443", "0.0.0.0:443"]\n[balancers]\nnetworks = ["10.0.0.0/8"]\n',
        "listen.proxy_protocol.1: 0.0.0.0:443 is given twice",
    ),
    *(
        (f"[listen]\n{keys}\n", f"listen.{key}: expected another address or port: listen.{taken}")
        for keys, key, taken in (
            ('tls = ["10.0.0.1:443", "10.0.0.1:443"]', "tls.1: 10.0.0.1:443", "tls.0 has 10.0.0.1:443"),
            ('tls = ["0.0.0.0:443", "10.0.0.1:443"]', "tls.1: 10.0.0.1:443", "tls.0 has 0.0.0.0:443"),
            ('web_proxy = ["10.0.0.1:443"]', "web_proxy.0: 10.0.0.1:443", "tls.0 has 0.0.0.0:443"),
            ('tls = ["[fd00::1]:443", "[::]:443"]', "tls.1: [::]:443", "tls.0 has [fd00::1]:443"),
            ('web_proxy = ["0.0.0.0:9443"]', "admin: 127.0.0.1:9443", "web_proxy.0 has 0.0.0.0:9443"),
        )
    ),
    (
        '[listen]\ntls = ["[::ffff:10.0.0.1]:443"]\n',
        "listen.tls.0: '[::ffff:a00:1]:443': expected 10.0.0.1:443, because a listener for IPv6 takes IPv6 only",
    ),
    (
        '[balancers]\nnetworks = ["::ffff:10.0.0.0/104"]\n',
        "balancers.networks.0: '::ffff:10.0.0.0/104' matches nothing: expected 10.0.0.0/8",
    ),
    (
        '[media]\nallowed_networks = ["::ffff:10.0.0.1"]\n',
        "media.allowed_networks.0: '::ffff:10.0.0.1' matches nothing: expected 10.0.0.1/32",
    ),
    (
        '[listen]\nproxy_protocol = ["0.0.0.0:443"]\n',
        "balancers.networks: expected the balancers' networks, because of listen.proxy_protocol",
    ),
    (
        '[balancers]\nnetworks = ["10.0.0.1/8"]\n',
        "balancers.networks.0: 10.0.0.1/8 has host bits set: expected a network such as 10.0.0.0/8 or fd00::/8",
    ),
    *(
        (
            f'[listen]\nadmin = "{address}"\n',
            f"listen.admin: {address}: other machines reach it, so it needs admin.token_hash (see relay admin-token);"
            " or listen on 127.0.0.1, or on unix:/run/cloud9-relay/admin.sock; listen.admin_unprotected = true leaves"
            " it open to all, without TLS",
        )
        for address in ("0.0.0.0:9443", "10.0.0.1:9443", "[::]:9443")
    ),
    (
        '[listen]\nadmin = "unix:"\n',
        "listen.admin: 'unix:': expected the path of a socket, for example unix:/run/cloud9-relay/admin.sock",
    ),
    (
        f'[listen]\nadmin = "unix:/{"a" * 107}"\n',
        f"listen.admin: 'unix:/{'a' * 107}': expected a path of at most 107 bytes",
    ),
    *(
        (
            f'[admin]\ntoken_hash = "{value}"\n',
            "admin.token_hash: expected an argon2 hash, as relay admin-token prints it:"
            " $argon2id$v=19$m=...,t=...,p=...$...",
        )
        for value in ("hunter2", "$2b$12$abcdefghijklmnopqrstuv", "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$")
    ),
    (
        f"[admin]\ntoken_hash = '{TOKEN_HASH.replace('m=64', 'm=9999999')}'\n",
        "admin.token_hash: expected a hash that costs at most m=262144,t=16,p=16, because each check of a token takes"
        " that",
    ),
    ("[admin]\ntoken = 'hunter2'\n", "admin.token: unknown key"),
    ('[listen]\nplane = "fast"\n', "listen.plane: 'fast': expected 'compiled' or 'reference'"),
    ("[listen]\nworkers = -1\n", "listen.workers: -1: expected greater than or equal to 0"),
    (
        '[media]\norigins = ["desk.example"]\n',
        "media.origins.0: 'desk.example': expected an origin such as https://desk.firm.example, without a path",
    ),
    (
        '[media]\norigins = ["https://a.example/b"]\n',
        "media.origins.0: 'https://a.example/b': expected an origin such as https://desk.firm.example, without a path",
    ),
    (
        "[media]\nown_credentials = 1\n",
        "media.own_credentials: 1: expected a valid boolean",
    ),
    (
        '[media]\nsource_addresses = ["eth0"]\n',
        "media.source_addresses.0: 'eth0': expected an IP address such as 192.0.2.7 or 2001:db8::7",
    ),
    (
        '[media]\nsource_addresses = ["192.0.2.1", "192.0.2.2"]\n',
        "media.source_addresses: expected at most one IPv4 and one IPv6 address",
    ),
    (
        '[access]\ndeny = ["10.0.0.1/8"]\n',
        "access.deny.0: 10.0.0.1/8 has host bits set: expected a network such as 10.0.0.0/8 or fd00::/8",
    ),
    (
        f"[limits]\nexempt_networks = {['10.0.0.0/8'] * 1001}\n",
        "limits.exempt_networks: 1001 networks: expected at most 1000",
    ),
    (
        "[limits]\nhandshakes_per_second = 100001\n",
        "limits.handshakes_per_second: 100001: expected less than or equal to 100000",
    ),
    (
        '[media]\nallowed_networks = ["10.0.0.1/8"]\n',
        "media.allowed_networks.0: 10.0.0.1/8 has host bits set: expected a network such as 10.0.0.0/8 or fd00::/8",
    ),
    ("[media]\nallowed_networks = [10]\n", "media.allowed_networks.0: 10: expected a string such as '10.0.0.0/8'"),
    ("[media]\nmax_media_age_ms = -1\n", "media.max_media_age_ms: -1: expected greater than 0"),
    ("[quality]\nplayout_deadline_ms = 0\n", "quality.playout_deadline_ms: 0: expected greater than 0"),
    ("[quality]\npayload_types = 5\n", "quality.payload_types: 5: expected a table of keys and values"),
    ("[quality]\npayload_types = {a = 8000}\n", "quality.payload_types.a: 'a': expected a number"),
    (
        "[quality]\npayload_types = {128 = 8000}\n",
        "quality.payload_types.128: '128': expected less than or equal to 127",
    ),
    (
        "[quality]\npayload_types = {111 = 48}\n",
        "quality.payload_types.111: 48: expected greater than or equal to 1000",
    ),
    ("[quality]\nrecords = 5\n", "quality.records: 5: expected the path of a file"),
    ("[quality]\ncalls = 5\n", "quality.calls: 5: expected the path of a file"),
    ("[quality]\ncalls_kept_days = -1\n", "quality.calls_kept_days: -1: expected greater than or equal to 0"),
    ("[quality]\ncalls_max_bytes = 1000\n", "quality.calls_max_bytes: 1000: expected greater than or equal to 1048576"),
    (
        '[[routes]]\nserver_name = "a.test"\nregion = "default"\nmax_media_age_ms = 20000\n',
        "routes.0.max_media_age_ms: 20000: expected less than or equal to 10000",
    ),
    ("[health]\ninterval_s = 0\n", "health.interval_s: 0: expected greater than 0"),
    ('[health]\ninterval_s = "1"\n', "health.interval_s: '1': expected a valid number"),
    ("[health]\njitter = 0.6\n", "health.jitter: 0.6: expected less than or equal to 0.5"),
    ("[health]\nfall = 0\n", "health.fall: 0: expected greater than or equal to 1"),
    ("[health]\nrise = 1.5\n", "health.rise: 1.5: expected a valid integer"),
    ("[limits]\nhandshake_timeout_s = nan\n", "limits.handshake_timeout_s: nan: expected less than or equal to 86400"),
    ("[limits]\ndrain_timeout_s = -1\n", "limits.drain_timeout_s: -1: expected greater than or equal to 0"),
    (
        "[limits]\nconnections = 99999999999999999999\n",
        "limits.connections: 99999999999999999999: expected less than or equal to 10000000",
    ),
    ('[quality]\nrecords = "a\\u0000b"\n', "quality.records: expected a path without NUL characters"),
    ("[limits]\nconnections = true\n", "limits.connections: true: expected a valid integer"),
    ('[log]\nlevel = "loud"\n', "log.level: 'loud': expected 'debug', 'info', 'warning' or 'error'"),
    (
        '[[routes]]\nserver_name = "*"\nregion = "default"\n',
        "routes.0.server_name: '*': expected a host name such as relay.example.com or *.example.com",
    ),
    (
        '[[routes]]\nserver_name = "büro.example.com"\nregion = "default"\n',
        "routes.0.server_name: 'büro.example.com': expected a host name such as relay.example.com or *.example.com",
    ),
    (
        '[[routes]]\nserver_name = "a.test"\nregion = "usw2"\n',
        "routes.0.region: 'usw2' has no upstream; known: ['default']",
    ),
    (
        '[[routes]]\nserver_name = "a.test"\nregion = "default"\n' * 2,
        "routes: the server_name 'a.test' is given twice",
    ),
    (UPSTREAM, "upstreams: the name 'stun1' is given twice"),
    ('[entitlement]\npolicy = "all"\n', "entitlement.policy: 'all': expected 'none', 'static', 'file' or 'http'"),
    ('[entitlement]\npolicy = "static"\n', "entitlement: policy = 'static' needs users"),
    ('[entitlement]\npolicy = "file"\n', "entitlement: policy = 'file' needs file"),
    ('[entitlement]\npolicy = "http"\n', "entitlement: policy = 'http' needs url"),
    (
        '[[entitlement.users]]\nuser = "ann"\n',
        "entitlement: users belongs to policy = 'static', but policy is 'none'",
    ),
    (
        '[entitlement]\npolicy = "file"\nfile = "a.toml"\nurl = "https://a.test/"\n',
        "entitlement: url belongs to policy = 'http', but policy is 'file'",
    ),
    ('[entitlement]\nfail = "shut"\n', "entitlement.fail: 'shut': expected 'closed' or 'open'"),
    ("[entitlement]\nrest_usernames = 1\n", "entitlement.rest_usernames: 1: expected a valid boolean"),
    ("[entitlement]\ntimeout_s = 5\n", "entitlement.timeout_s: 5: expected less than or equal to 4"),
    ("[entitlement]\ncache_s = -1\n", "entitlement.cache_s: -1: expected greater than or equal to 0"),
    ("[entitlement]\ncache_answers = 0\n", "entitlement.cache_answers: 0: expected greater than or equal to 1"),
    ("[entitlement]\ncalls = 1\n", "entitlement.calls: unknown key"),
    (
        '[entitlement]\npolicy = "static"\n[[entitlement.users]]\nuser = "a"\nregions = ["usw2"]\n',
        "entitlement.users.0.regions: 'usw2' has no upstream; known: ['default']",
    ),
    (
        '[entitlement]\npolicy = "static"\n[[entitlement.users]]\nuser = "a**"\n',
        "entitlement.users.0.user: 'a**': expected a user name, or a pattern with one '*' such as *@desk.example",
    ),
    *(
        (f'[entitlement]\npolicy = "http"\nurl = "{url}"\n', f"entitlement.url: {expected}")
        for url, expected in (
            ("ftp://a.test/", "expected a URL such as https://entitlement.firm.example/voice"),
            ("a.test", "expected a URL such as https://entitlement.firm.example/voice"),
            ("https://", "expected a URL such as https://entitlement.firm.example/voice"),
            ("https://a.test:99999/", "expected a URL such as https://entitlement.firm.example/voice"),
            ("https://a.test/ b", "expected a URL such as https://entitlement.firm.example/voice"),
            ("https://ann:hunter2@a.test/", "expected a URL without user, password and fragment"),
            ("https://a.test/#b", "expected a URL without user, password and fragment"),
        )
    ),
    (
        '[entitlement]\npolicy = "http"\nurl = "http://a.test/"\ntoken = "hunter2"\n',
        "entitlement.token: expected an https url, because http would send the token unencrypted",
    ),
    (
        '[entitlement]\npolicy = "http"\nurl = "https://a.test/"\ntoken = "hunter 2"\n',
        "entitlement.token: expected printable ASCII without spaces",
    ),
    (
        '[entitlement]\npolicy = "http"\nurl = "https://a.test/"\ntoken = 2\n',
        "entitlement.token: expected a valid string",
    ),
    *(
        (f'[cluster]\nredis = "{url}"\n', f"cluster.redis: {expected}")
        for url, expected in (
            ("http://a.test", "expected redis://host:port/database, or rediss:// for TLS"),
            ("redis://", "expected redis://host:port/database, or rediss:// for TLS"),
            ("redis://a.test:99999", "expected redis://host:port/database, or rediss:// for TLS"),
            (
                "redis://:hunter2@a.test",
                "expected a URL without user and password: these are username and password_file",
            ),
            ("redis://a.test/?db=1", "expected a URL without user and password: these are username and password_file"),
            (
                "redis://a.test/calls",
                "expected the number of a database after the port, such as redis://host:6379/0",
            ),
        )
    ),
    (
        '[cluster]\npassword = "hunter2"\n',
        "cluster.redis: expected redis://host:port/database, because of password",
    ),
    (
        '[cluster]\nredis = "redis://a.test"\npassword = "hunter2"\npassword_file = "b"\n',
        "cluster.password_file: expected either password or password_file, not both",
    ),
    (
        '[cluster]\nredis = "redis://a.test"\nusername = "relay"\n',
        "cluster.username: expected password_file, or password, as well",
    ),
    (
        '[cluster]\nredis = "redis://a.test"\nca_file = "ca.pem"\n',
        "cluster.ca_file: expected a rediss:// URL as well, because redis:// is without TLS",
    ),
    ("[cluster]\nlease_s = 16\n", "cluster.lease_s: 16: expected less than or equal to 15"),
    ("[cluster]\ntimeout_s = 2\n", "cluster.timeout_s: 2: expected less than or equal to 1"),
]


@pytest.mark.parametrize(("addition", "line"), WRONG, ids=[line.partition(": ")[0] for _, line in WRONG])
def test_one_line_for_each_mistake(tmp_path: Path, addition: str, line: str) -> None:
    # Keys without a table come first.
    text = addition + MINIMAL if addition.startswith("listen =") else MINIMAL + addition
    assert mistakes(tmp_path, text) == [line]


HOSTS = "an IP address, for example turn.example.com:3478, 192.0.2.7:3478 or [2001:db8::7]:3478"
WRONG_UPSTREAMS = [
    (
        'address = "192.0.2.7"',
        "upstreams.0.address: '192.0.2.7': expected host:port, for example 192.0.2.7:3478 or [2001:db8::7]:3478",
    ),
    (
        'address = "192.0.2.7:65536"',
        "upstreams.0.address: '192.0.2.7:65536': expected host:port, for example 192.0.2.7:3478 or [2001:db8::7]:3478",
    ),
    ('address = "192.0.2.7:0"', "upstreams.0.address: '192.0.2.7:0': expected a server's port, 1 to 65535"),
    (
        'address = "2001:db8::7:3478"',
        "upstreams.0.address: '2001:db8::7:3478': an IPv6 address needs brackets, for example [::1]:443",
    ),
    ('address = "stun 1:3478"', "upstreams.0.address: 'stun 1:3478': a host has no spaces and no control characters"),
    *(
        (f'address = "{host}:3478"', f"upstreams.0.address: '{host}:3478': expected a host name or {HOSTS}")
        for host in ("192.0.2.999", "*.example.com", "192.0.2.7%eth0", "bücher.example", "a..example", "300")
    ),
    ("", "upstreams.0.address: required, but missing"),
    (
        'address = "a:1"\nregion = "a b"',
        "upstreams.0.region: 'a b': expected at most 63 letters, digits, '.', '_' or '-', the first a letter or digit",
    ),
    ('address = "a:1"\nusername = "trader"', "upstreams.0: username and password belong together"),
    ('address = "a:1"\npassword = "hunter2"', "upstreams.0: username and password belong together"),
    (
        'address = "a:1"\nusername = "trader"\npassword = "hunter2"\nsecret = "hunter2"',
        "upstreams.0: expected either username and password, or secret",
    ),
    ('address = "a:1"\nusername = "trader"\npassword = ["hunter2"]', "upstreams.0.password: expected a valid string"),
    ('address = "a:1"\nusername = "trader"\npassword = ""', "upstreams.0.password: expected at least one character"),
    ('address = "a:1"\nsecret = ""', "upstreams.0.secret: expected at least one character"),
    ('address = "a:1"\nsecret = 2', "upstreams.0.secret: expected a valid string"),
    ('address = "a:1"\nsekret = "hunter2"', "upstreams.0.sekret: unknown key"),
]


@pytest.mark.parametrize(("keys", "line"), WRONG_UPSTREAMS)
def test_one_line_for_each_mistake_in_an_upstream(tmp_path: Path, keys: str, line: str) -> None:
    lines = mistakes(tmp_path, f'{CERTIFICATES}[[upstreams]]\nname = "stun1"\n{keys}\n')
    assert lines == [line]
    assert "hunter2" not in line


def test_the_password_of_redis_is_the_first_line_of_its_file(tmp_path: Path) -> None:
    file, text = tmp_path / "password", MINIMAL + '[cluster]\nredis = "rediss://a.test"\npassword_file = "password"\n'
    cluster = load(tmp_path, text).cluster
    assert (cluster.address, cluster.database, cluster.has_tls) == (Address("a.test", 6379), 0, True)
    file.write_text("hunter2\n\n")
    assert cluster.read_password() == "hunter2"
    for content in (b"", b"\n", b"\xff\n", b"x" * 5000):
        file.write_bytes(content)
        with pytest.raises(OperatorError, match=r"\(cluster.password_file\): expected a password in its first line"):
            cluster.read_password()
    file.unlink()
    with pytest.raises(OperatorError, match=r"\(cluster.password_file\): no such file or directory"):
        cluster.read_password()


def test_what_must_be_there(tmp_path: Path) -> None:
    assert mistakes(tmp_path, "") == [
        "certificates: required, but missing",
        "upstreams: required, but missing",
    ]
    assert mistakes(tmp_path, "certificates = []\nupstreams = []\n") == [
        "certificates: expected at least one",
        "upstreams: expected at least one",
    ]
    assert mistakes(tmp_path, UPSTREAM + "[[certificates]]\ncertificate = 5\n") == [
        "certificates.0.certificate: 5: expected the path of a file",
        "certificates.0.private_key: required, but missing",
    ]


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    text = MINIMAL + '[listen]\nadmin = "x"\n[health]\nfall = 0\n[log]\ncolour = true\n'
    assert [line.partition(":")[0] for line in mistakes(tmp_path, text)] == [
        "listen.admin",
        "health.fall",
        "log.colour",
    ]


def test_what_is_no_toml(tmp_path: Path) -> None:
    [line] = mistakes(tmp_path, MINIMAL + "[listen\n")
    assert line.startswith("not valid TOML: ")
    assert "line 7" in line


def test_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "relay.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(OperatorError, match=r"relay\.toml: not valid TOML: 'utf-8' codec"):
        config.load(tmp_path / "relay.toml")


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OperatorError) as refused:
        config.load(tmp_path / "relay.toml")
    assert str(refused.value) == f"{tmp_path / 'relay.toml'}: No such file or directory"
    with pytest.raises(OperatorError, match="Is a directory"):
        config.load(tmp_path)


def test_table_with_a_secret_where_a_list_is_expected(tmp_path: Path) -> None:
    text = CERTIFICATES + UPSTREAM.replace("[[upstreams]]", "[upstreams]") + 'secret = "hunter2"\n'
    assert mistakes(tmp_path, text) == ["upstreams: expected a list"]


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    text = CERTIFICATES + UPSTREAM + 'username = "trader"\npassword = "hunter2"\n'
    text += UPSTREAM.replace("stun1", "stun2") + 'secret = "hunter3"\n'
    settings = load(tmp_path, text)
    for shown in (repr(settings), str(settings), settings.model_dump_json()):
        assert "hunter" not in shown
        assert "trader" in shown
    assert settings.upstreams[1].secret is not None
    assert settings.upstreams[1].secret.get_secret_value() == "hunter3"


def test_a_secret_may_have_a_file_of_its_own(tmp_path: Path) -> None:
    """Each of the secrets, those in a table of users too. Paths count from the configuration's folder."""
    secrets = {"hash": TOKEN_HASH, "probe": "hunter2", "shared": "hunter3", "token": "hunter4", "ann": " hunter5 "}
    (tmp_path / "secrets").mkdir()
    for name, secret in secrets.items():
        (tmp_path / "secrets" / name).write_text(f"{secret}\n")
    text = (
        CERTIFICATES
        + UPSTREAM
        + 'username = "trader"\npassword = { file = "secrets/probe" }\n'
        + UPSTREAM.replace("stun1", "stun2")
        + f"secret.file = '{tmp_path}/secrets/shared'\n"
        + '[admin]\ntoken_hash = { file = "secrets/hash" }\n'
        + '[entitlement]\npolicy = "http"\nurl = "https://a.test/"\ntoken = { file = "secrets/token" }\n'
        + '[web_proxy.users]\nann = { file = "secrets/ann" }\nben = "hunter6"\n'
    )
    settings = load(tmp_path, text)
    given = [
        settings.admin.token_hash,
        settings.upstreams[0].password,
        settings.upstreams[1].secret,
        settings.entitlement.token,
        *settings.web_proxy.users.values(),
    ]
    assert [one and one.get_secret_value() for one in given] == [*secrets.values(), "hunter6"]
    for shown in (repr(settings), str(settings), settings.model_dump_json()):
        assert "hunter" not in shown
        assert "argon2" not in shown


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "{path}: no such file or directory"),
        (b"", "expected at least one character"),
        (b"\n", "expected at least one character"),
        (b"hunter2\nhunter3\n", "{path}: expected one line"),
        (b"hunter2\xff", "{path}: expected UTF-8"),
        (b"hunter2" * 3000, "{path}: expected at most 16384 bytes"),
    ],
)
def test_files_of_secrets_that_cannot_be_used(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    text = MINIMAL + 'secret = { file = "secret" }\n'
    assert mistakes(tmp_path, text) == [f"upstreams.0.secret: {complaint.format(path=path)}"]


@pytest.mark.parametrize(
    "value", ["{ }", '{ fil = "hunter2" }', "{ file = 2 }", '{ file = "" }', '{ file = "a", text = "hunter2" }']
)
def test_tables_that_are_not_a_secret(tmp_path: Path, value: str) -> None:
    [mistake] = mistakes(tmp_path, MINIMAL + f"secret = {value}\n")
    expected = 'expected a text, or { file = "..." } with the path of a file that has the text'
    assert mistake == f"upstreams.0.secret: {expected}"


def test_what_holds_for_a_secret_holds_for_its_file(tmp_path: Path) -> None:
    (tmp_path / "hash").write_text("hunter2")
    [mistake] = mistakes(tmp_path, MINIMAL + '[admin]\ntoken_hash = { file = "hash" }\n')
    assert mistake.startswith("admin.token_hash: expected an argon2 hash")
    assert "hunter2" not in mistake


# Signaling


def test_signaling(tmp_path: Path) -> None:
    text = MINIMAL + (
        '[signaling]\nupstreams = ["http://192.0.2.7:8080/", "https://[2001:DB8::7]"]\nca_file = "ca.pem"\n'
        'trusted_networks = ["10.0.0.0/8"]\n'
        '[[signaling.routes]]\nhost = "*.Prod1.xhoot.com"\npath = "/socket.io/"\nupstreams = ["http://a.test"]\n'
    )
    signaling = load(tmp_path, text).signaling
    assert signaling.upstreams == ("http://192.0.2.7:8080", "https://[2001:db8::7]")
    assert signaling.ca_file == tmp_path / "ca.pem"
    assert (signaling.routes[0].host, signaling.routes[0].path) == ("*.prod1.xhoot.com", "/socket.io/")
    assert signaling.configured
    assert not load(tmp_path, MINIMAL).signaling.configured


@pytest.mark.parametrize(
    "upstream",
    [
        "192.0.2.7:8080",
        "ws://192.0.2.7",
        "http://192.0.2.7/base",
        "http://user@192.0.2.7",
        "http://192.0.2.7?a",
        "http://",
        "http://192.0.2.7:0",
        "http://192.0.2.7:99999",
        "http://a b",
        "http://[::g]",
    ],
)
def test_signaling_upstream_that_is_none(tmp_path: Path, upstream: str) -> None:
    [mistake] = mistakes(tmp_path, MINIMAL + f'[signaling]\nupstreams = ["{upstream}"]\n')
    assert mistake.startswith("signaling.upstreams.0: ")
    assert "expected" in mistake or "does not appear" in mistake


@pytest.mark.parametrize("path", ["socket.io", "/a/../b", "/a?b", "/a%20b", "/a b", ""])
def test_signaling_path_that_is_none(tmp_path: Path, path: str) -> None:
    route = f'[[signaling.routes]]\npath = "{path}"\nupstreams = ["http://a.test"]\n'
    assert mistakes(tmp_path, MINIMAL + route) == [
        f"signaling.routes.0.path: {path!r}: expected a path such as /socket.io/, decoded and without a query"
    ]


def test_signaling_route_that_is_given_twice(tmp_path: Path) -> None:
    route = '[[signaling.routes]]\nhost = "a.test"\nupstreams = ["http://a.test"]\n'
    assert mistakes(tmp_path, MINIMAL + route + route) == [
        "signaling.routes: host 'a.test' with path '/' is given twice"
    ]
