"""The Helm chart: Helm renders it, Kubernetes' schemas take what comes out, and the relay takes its configuration.

Nothing here asks a cluster.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from pathlib import Path
from typing import Any

import aiohttp
import helm_python
import kubernetes_validate
import pytest

from relay import __version__, config
from relay.addresses import Address
from relay.ca.certificates import certificate_pem
from relay.gateway.admin.tokens import hash_token, new_token
from relay.gateway.app import Gateway
from relay.gateway.departure import SPREAD_S
from relay.gateway.serve import END_S
from tests.support.benches.commands import run_here
from tests.support.benches.gateway import write_config
from tests.support.certificates_made import authority, files_in, signed, write_pair
from tests.support.chart import CHART, Manifest, Rendered, chart

DEPLOY = CHART.parents[1]
# The oldest that Chart.yaml allows, and the newest that the schemas are there for.
OLDEST = "1.28"
TOKEN_HASH = "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
DIGEST = "sha256:" + "0" * 64
UPSTREAM = {"name": "stun1", "address": "192.0.2.7:3478"}

Values = dict[str, Any]

# Each switch is on in one of these, and off in another.
RELEASES: dict[str, Values] = {
    "default": {},
    "everything": {
        "image": {"digest": DIGEST, "pullSecrets": ["registry"]},
        "config": {
            "upstreams": [{**UPSTREAM, "username": "probe", "password": {"file": "secrets/probe/password"}}],
            "routes": [{"server_name": "*.firm.example", "region": "default", "max_media_age_ms": 120.5}],
            "signaling": {
                "upstreams": ["https://a.test", "http://b.test:8080"],
                "routes": [{"host": "*.test", "path": "/x/", "upstreams": ["http://c.test", "https://[2001:db8::7]"]}],
                "ca_file": "configmaps/authorities/ca.pem",
            },
            "web_proxy": {"allow": ["d.test", "*.d.test:8443"], "users": {"ann": {"file": "secrets/probe/ann"}}},
            "entitlement": {"policy": "http", "url": "https://e.test:8444/", "token": {"file": "secrets/probe/token"}},
            "quality": {"payload_types": {"111": 48000}},
            "cluster": {
                "redis": "rediss://redis.test/0",
                "password": {"file": "secrets/probe/redis"},
                "secret": {"file": "secrets/probe/redis"},
                "ca_file": "configmaps/authorities/ca.pem",
            },
        },
        "listen": {
            "hosts": ["[::]", "0.0.0.0"],
            "tlsPort": 443,
            "webProxyPort": 3128,
            "adminHosts": ["relay.firm.example"],
            "proxyProtocolFrom": ["10.20.0.1", "10.20.0.2/31"],
            "clientCertificates": "required",
            "clientCa": "configmaps/authorities/ca.pem",
        },
        "certificates": ["cloud9-relay-tls", "media-hosts"],
        "secrets": [{"name": "probe", "keys": ["password", "ann", "token", "redis"]}],
        "configMaps": [{"name": "authorities", "keys": ["ca.pem"]}],
        "expose": {
            "annotations": {"metallb.universe.tf/address-pool": "voice"},
            "loadBalancerClass": "firm.example/balancer",
            "loadBalancerSourceRanges": ["10.0.0.0/8"],
        },
        "podDisruptionBudget": {"maxUnavailable": "25%"},
        "autoscaling": {"enabled": True},
        "networkPolicy": {
            "clients": ["10.0.0.0/8"],
            "connectUdp": True,
            "extraEgress": [{"ports": [{"protocol": "TCP", "port": 5432}]}],
        },
        "serviceMonitor": {
            "enabled": True,
            "labels": {"release": "prometheus"},
            "serverName": "relay.firm.example",
            "ca": {"secret": {"name": "cloud9-relay-tls", "key": "ca.crt"}},
        },
        "nodeSelector": {"firm.example/voice": "true"},
        "tolerations": [{"key": "voice", "operator": "Exists"}],
        "priorityClassName": "voice",
        "serviceAccountName": "voice",
        "podAnnotations": {"firm.example/team": "voice"},
        "podLabels": {"firm.example/team": "voice"},
    },
    "ports of nodes": {
        "config": {"ocsp": {"stapling": False}},
        "expose": {"type": "HostPort"},
        "listen": {"webProxyPort": 3128},
        "podDisruptionBudget": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "preStopSeconds": 0,
        "topologySpread": [],
    },
    "within the cluster": {"expose": {"type": "ClusterIP", "sessionAffinity": "None"}},
}


@pytest.fixture(scope="module")
def releases() -> dict[str, Rendered]:
    return {name: Rendered(values) for name, values in RELEASES.items()}


# Helm, and Kubernetes


def test_helm_finds_nothing_wrong() -> None:
    for values in RELEASES.values():
        report = helm_python.lint(CHART, values, strict=True)
        # That there is no icon is information only.
        assert [one["error"] for one in report["messages"] if one["severity"] > 1] == []
        assert report["errors"] == []


@pytest.mark.parametrize("name", RELEASES)
def test_kubernetes_takes_each_manifest(releases: dict[str, Rendered], name: str) -> None:
    for manifest in releases[name].manifests:
        if manifest["kind"] == "ServiceMonitor":  # not a part of Kubernetes: it has a test of its own
            continue
        # These two have all that another could have.
        oldest = [OLDEST] if name in {"everything", "ports of nodes"} else []
        for version in (kubernetes_validate.latest_version(), *oldest):
            kubernetes_validate.validate(manifest, version, strict=True)


def test_schemas_refuse_what_kubernetes_does_not_know(releases: dict[str, Rendered]) -> None:
    """The proof proves nothing if it cannot see."""
    wrong = json.loads(json.dumps(releases["default"].one("Deployment")))
    wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, OLDEST, strict=True)


def test_what_is_there_with_each_switch(releases: dict[str, Rendered]) -> None:
    always = ["ConfigMap", "Deployment", "Service"]
    optional = {
        "default": ["NetworkPolicy", "PodDisruptionBudget", "Service"],
        "everything": [
            "HorizontalPodAutoscaler",
            "NetworkPolicy",
            "PodDisruptionBudget",
            "Service",
            "ServiceMonitor",
        ],
        "ports of nodes": [],
        "within the cluster": ["NetworkPolicy", "PodDisruptionBudget", "Service"],
    }
    for name, rendered in releases.items():
        assert sorted(one["kind"] for one in rendered.manifests) == sorted([*always, *optional[name]])
        names = {one["metadata"]["name"] for one in rendered.manifests}
        assert names == {"voice-cloud9-relay", "voice-cloud9-relay-admin"}
        selected = rendered.one("Deployment")["spec"]["selector"]["matchLabels"]
        assert rendered.one("Deployment")["spec"]["template"]["metadata"]["labels"].items() >= selected.items()
        for manifest in rendered.manifests:
            assert manifest["metadata"]["labels"].items() >= selected.items()


# The configuration


def mounted(rendered: Rendered, folder: Path, token_hash: str = TOKEN_HASH) -> Path:
    """The relay's configuration, with all that it names beside it."""
    issuer = authority()
    pair = write_pair(files_in(folder, "issued"), signed(issuer, "relay.firm.example"))
    tls: dict[str, str | bytes] = {"tls.crt": pair.chain.read_bytes(), "tls.key": pair.private_key.read_bytes()}
    there: dict[str, dict[str, str | bytes]] = {
        "cloud9-relay-tls": tls,
        "media-hosts": tls,
        "cloud9-relay-admin": {"token": "not for the relay", "token_hash": f"{token_hash}\n"},
        "probe": {"password": "hunter2", "ann": "hunter3", "token": "hunter4", "redis": "hunter5"},
        "authorities": {"ca.pem": certificate_pem(issuer.certificate)},
    }
    return rendered.mount(folder / "etc", there) / "relay.toml"


@pytest.mark.parametrize("name", RELEASES)
def test_the_relay_takes_its_configuration(releases: dict[str, Rendered], tmp_path: Path, name: str) -> None:
    path = mounted(releases[name], tmp_path)
    status, stdout, stderr = run_here("check-config", path)
    assert (status, stdout.partition(" (")[0]) == (0, f"{path}: ok"), stderr
    assert "not for the relay" not in {file.read_text() for file in path.parent.rglob("*") if file.is_file()}


def test_the_configuration_of_everything(releases: dict[str, Rendered], tmp_path: Path) -> None:
    settings = config.load(mounted(releases["everything"], tmp_path))
    assert settings.listen.tls == (Address("::", 443), Address("0.0.0.0", 443))
    assert dict(settings.listen.client_certificates) == dict.fromkeys(settings.listen.tls, "required")
    assert settings.listen.admin == Address("::", 9443)
    assert settings.listen.admin_has_tls
    assert settings.listen.proxy_protocol == (*settings.listen.tls, *settings.listen.web_proxy)
    assert [str(network) for network in settings.balancers.networks] == ["10.20.0.1/32", "10.20.0.2/31"]
    assert [one.certificate.parts[-2] for one in settings.certificates] == ["cloud9-relay-tls", "media-hosts"]
    assert settings.upstreams[0].password is not None
    assert settings.upstreams[0].password.get_secret_value() == "hunter2"
    assert settings.web_proxy.users["ann"].get_secret_value() == "hunter3"
    assert settings.routes[0].max_media_age_ms == 120.5


def test_values_of_all_kinds_become_toml() -> None:
    """Whole numbers stay whole, texts keep each letter, and tables their depth."""
    tables = {
        "upstreams": [UPSTREAM],
        "limits": {"lame_duck_s": 0.5, "drain_timeout_s": 300, "connections": 20_000, "bytes": 1 << 40, "tiny": 1e-7},
        "quality": {"payload_types": {"111": 48_000, "a key": -3}, "empty": {}},
        "texts": {"quotes": "a\"b'c\\d", "more": "<&>\t\n é €", "list": [["a"], [], [True, False, 1, 2.5]]},
        "tables": [{"of": [{"tables": {"deep": [{"x": "y"}]}}]}, {"of": []}],
    }
    found = tomllib.loads(Rendered({"config": tables}).relay_toml)
    for name, table in tables.items():
        if isinstance(table, dict):
            # Defaults of the chart are in the same tables.
            found[name] = {key: value for key, value in found[name].items() if key in table}
        assert found[name] == table, name
    assert isinstance(found["limits"]["connections"], int)


def test_what_is_null_is_left_out() -> None:
    found = tomllib.loads(Rendered({"config": {"quality": {"calls_max_bytes": None, "records": None}}}).relay_toml)
    assert found["quality"] == {}


# What Kubernetes asks the relay for


async def test_what_kubernetes_asks_for_is_there(releases: dict[str, Rendered], tmp_path: Path) -> None:
    """Probes without a token, metrics with one, over the TLS that the admin listener of a pod has."""
    token = new_token()
    nobody = [{"name": "stun1", "address": "127.0.0.1:9"}]
    monitor = RELEASES["everything"]["serviceMonitor"]
    rendered = Rendered({"config": {"upstreams": nobody}, "serviceMonitor": monitor})
    path = mounted(rendered, tmp_path, hash_token(token))
    tree = tomllib.loads(rendered.relay_toml)
    assert tree["listen"]["admin"] == "0.0.0.0:9443"
    tree["listen"] |= {"tls": ["127.0.0.1:0"], "admin": "0.0.0.0:0"}
    write_config(path.parent / "here.toml", tree)
    gateway = Gateway(config.load(path.parent / "here.toml"))
    await gateway.start()
    try:
        assert isinstance(gateway.admin, Address)
        admin = f"https://127.0.0.1:{gateway.admin.port}"
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session:
            statuses = {}
            for name in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = rendered.container[name]["httpGet"]
                assert (probe["port"], probe["scheme"]) == ("admin", "HTTPS")
                async with session.get(admin + probe["path"]) as response:
                    statuses[name] = response.status
            # No upstream answers.
            assert statuses == {"startupProbe": 200, "readinessProbe": 503, "livenessProbe": 200}
            [endpoint] = rendered.one("ServiceMonitor")["spec"]["endpoints"]
            async with session.get(admin + endpoint["path"]) as response:
                assert response.status == 401
            bearer = {"Authorization": f"{endpoint['authorization']['type']} {token}"}
            async with session.get(admin + endpoint["path"], headers=bearer) as response:
                assert response.status == 200
                metrics = await response.text()
    finally:
        await gateway.stop()
    [metric] = releases["everything"].one("HorizontalPodAutoscaler")["spec"]["metrics"]
    asked = metric["pods"]["metric"]["name"]
    assert f"\n{asked}{{" in metrics
    # prometheus-adapter knows it by the same name.
    adapter = helm_python.values_from_yaml((DEPLOY / "prometheus" / "adapter.yml").read_text())
    [rule] = adapter["rules"]["custom"]
    assert rule["seriesQuery"].startswith(f"{asked}{{")


def test_prometheus_finds_each_relay(releases: dict[str, Rendered]) -> None:
    rendered = releases["everything"]
    monitor, service = rendered.one("ServiceMonitor"), rendered.one("Service", "voice-cloud9-relay-admin")
    spec = monitor["spec"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert service["metadata"]["labels"].items() >= spec["selector"]["matchLabels"].items()
    others = rendered.one("Service")["metadata"]["labels"].items()
    assert not others >= spec["selector"]["matchLabels"].items()
    # The alerts and the dashboard ask for this job.
    job = service["metadata"]["labels"][spec["jobLabel"]]
    assert f"job_name: {job}\n" in (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    [endpoint] = spec["endpoints"]
    assert endpoint["port"] == service["spec"]["ports"][0]["name"]
    assert endpoint["authorization"]["credentials"] == {"name": "cloud9-relay-admin", "key": "token"}
    assert endpoint["tlsConfig"] == {
        "serverName": "relay.firm.example",
        "ca": {"secret": {"name": "cloud9-relay-tls", "key": "ca.crt"}},
    }
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("None", True)


# The end


@pytest.mark.parametrize(
    ("pre_stop", "lame_duck", "drain"), [(20, 8, 300), (0, 0, 0), (5, 2.5, 0.1), (3600, 3600, 86_400)]
)
def test_a_pod_has_time_for_its_end(pre_stop: int, lame_duck: float, drain: float) -> None:
    limits = {"lame_duck_s": lame_duck, "drain_timeout_s": drain}
    rendered = Rendered({"preStopSeconds": pre_stop, "config": {"limits": limits}})
    whole = pre_stop + math.ceil(lame_duck) + math.ceil(drain) + SPREAD_S + END_S
    assert rendered.pod["terminationGracePeriodSeconds"] == whole + 12
    assert rendered.one("Deployment")["spec"]["progressDeadlineSeconds"] == whole + 12 + 600
    found = tomllib.loads(rendered.relay_toml)["limits"]
    assert (found["lame_duck_s"], found["drain_timeout_s"]) == (lame_duck, drain)
    hooks = {"preStop": {"exec": {"command": ["sleep", str(pre_stop)]}}} if pre_stop else None
    # The kubelet sends SIGTERM after it. The relay would take a second one for an order to stop at once.
    assert rendered.container.get("lifecycle") == hooks


def test_the_default_end_is_one_that_autoscalers_of_nodes_wait_for(releases: dict[str, Rendered]) -> None:
    """For 600 s, unless they are told otherwise; values.yaml says how much of that is used."""
    assert releases["default"].pod["terminationGracePeriodSeconds"] == 350
    assert "may take 350 s" in releases["default"].notes


def test_only_some_changes_need_new_pods(releases: dict[str, Rendered]) -> None:
    def changed(**values: Any) -> bool:
        return Rendered(values).one("Deployment") != releases["default"].one("Deployment")

    assert not changed(config={"media": {"max_media_age_ms": 120}, "limits": {"connections": 3000}})
    assert not changed(config={"upstreams": [UPSTREAM]})
    assert changed(config={"log": {"level": "debug"}})
    assert changed(config={"cluster": {"redis": "redis://redis.test:6379/0"}})
    assert changed(listen={"workers": 2})
    assert changed(certificates=["another"])
    # Kubernetes must know how long the end may take.
    assert changed(config={"limits": {"drain_timeout_s": 301}})


# The pod


def test_the_pod_may_do_no_more_than_it_needs(releases: dict[str, Rendered]) -> None:
    for name, rendered in releases.items():
        security = dict(rendered.pod["securityContext"])
        # Only a port below 1024 needs more, and then not a capability.
        sysctls = [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}] if name == "everything" else None
        assert security.pop("sysctls", None) == sysctls
        assert security == {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert rendered.container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert rendered.pod["automountServiceAccountToken"] is False
        assert "cpu" not in rendered.container["resources"]["limits"]


def test_mounts(releases: dict[str, Rendered]) -> None:
    mounts = {one["name"]: one for one in releases["default"].container["volumeMounts"]}
    assert mounts["config"] == {"name": "config", "mountPath": "/etc/cloud9-relay", "readOnly": True}
    # A file that is mounted alone is never renewed.
    assert not any("subPath" in one for one in mounts.values())
    volumes = {one["name"]: one for one in releases["default"].pod["volumes"]}
    assert volumes["config"]["projected"]["defaultMode"] == 0o440
    assert volumes["state"]["emptyDir"]["sizeLimit"] == str(2 * 268_435_456 + 134_217_728)
    larger = Rendered({"config": {"quality": {"calls_max_bytes": 1 << 30}}}).pod["volumes"]
    assert {"name": "state", "emptyDir": {"sizeLimit": str((2 << 30) + 134_217_728)}} in larger


def test_the_image_and_the_chart_agree(releases: dict[str, Rendered]) -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    pod, container = releases["default"].pod, releases["default"].container
    user = pod["securityContext"]
    assert f"\nUSER {user['runAsUser']}:{user['runAsGroup']}\n" in dockerfile
    [entry] = re.findall(r"^ENTRYPOINT (.*)$", dockerfile, re.MULTILINE)
    [command] = re.findall(r"^CMD (.*)$", dockerfile, re.MULTILINE)
    assert json.loads(entry) == ["relay"]
    assert "command" not in container
    assert [one for one in container["args"] if one != "--watch"] == json.loads(command)
    [state] = re.findall(r"^ENV STATE_DIRECTORY=(.*)$", dockerfile, re.MULTILINE)
    assert state in [one["mountPath"] for one in container["volumeMounts"]]


def test_the_image(releases: dict[str, Rendered]) -> None:
    assert releases["default"].container["image"] == f"cloud9-relay:{__version__}"
    assert releases["everything"].container["image"] == f"cloud9-relay:{__version__}@{DIGEST}"


def test_where_relays_may_be(releases: dict[str, Rendered]) -> None:
    rendered = releases["everything"]
    assert [one["topologyKey"] for one in rendered.pod["topologySpreadConstraints"]] == [
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    ]
    labels = rendered.one("Deployment")["spec"]["selector"]
    assert all(one["labelSelector"] == labels for one in rendered.pod["topologySpreadConstraints"])
    assert rendered.pod["nodeSelector"] == {"firm.example/voice": "true"}
    assert rendered.pod["tolerations"] == [{"key": "voice", "operator": "Exists"}]


# The network


def test_how_clients_come_in(releases: dict[str, Rendered]) -> None:
    service = releases["default"].one("Service")["spec"]
    assert (service["type"], service["externalTrafficPolicy"]) == ("LoadBalancer", "Local")
    assert service["ports"] == [{"name": "tls", "port": 443, "targetPort": "tls"}]
    assert service["sessionAffinity"] == "ClientIP"
    both = releases["everything"].one("Service")["spec"]
    assert [port["port"] for port in both["ports"]] == [443, 3128]
    assert both["loadBalancerSourceRanges"] == ["10.0.0.0/8"]
    inside = releases["within the cluster"].one("Service")["spec"]
    assert "externalTrafficPolicy" not in inside
    assert inside["sessionAffinity"] == "None"
    # The admin port is nowhere among them.
    assert not any(port["port"] == 9443 for one in (service, both, inside) for port in one["ports"])


def test_ports_of_nodes(releases: dict[str, Rendered]) -> None:
    rendered = releases["ports of nodes"]
    ports = {one["name"]: one.get("hostPort") for one in rendered.container["ports"]}
    assert ports == {"tls": 443, "web-proxy": 3128, "admin": None}
    # A new pod gets the port only when the old one has ended.
    strategy = rendered.one("Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": 0, "maxUnavailable": 1}
    others = releases["default"]
    assert not any("hostPort" in one for one in others.container["ports"])
    assert others.one("Deployment")["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def ports_of(rules: list[Manifest], protocol: str) -> list[Any]:
    """All ports of a protocol, ranges as pairs."""
    ports = [port for rule in rules for port in rule["ports"] if port["protocol"] == protocol]
    return [(port["port"], port["endPort"]) if "endPort" in port else port["port"] for port in ports]


def test_who_may_talk_to_a_relay(releases: dict[str, Rendered]) -> None:
    monitoring = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    tls = {"ports": [{"protocol": "TCP", "port": 8443}]}
    admin = {"ports": [{"protocol": "TCP", "port": 9443}], "from": monitoring}
    assert releases["default"].one("NetworkPolicy")["spec"]["ingress"] == [tls, admin]
    [clients, _] = releases["everything"].one("NetworkPolicy")["spec"]["ingress"]
    assert ports_of([clients], "TCP") == [443, 3128]
    assert clients["from"] == [{"ipBlock": {"cidr": "10.0.0.0/8"}}]


def test_whom_a_relay_may_talk_to(releases: dict[str, Rendered]) -> None:
    policy = releases["default"].one("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert (ports_of(policy["egress"], "UDP"), ports_of(policy["egress"], "TCP")) == ([3478, 53], [53, 80])
    voice, dns, _ = policy["egress"]
    assert [one["ipBlock"]["cidr"] for one in voice["to"]] == ["0.0.0.0/0", "::/0"]
    [resolver] = dns["to"]
    assert resolver["podSelector"]["matchLabels"] == {"k8s-app": "kube-dns"}
    rules = releases["everything"].one("NetworkPolicy")["spec"]["egress"]
    assert ports_of(rules, "UDP") == [3478, 3478, (16384, 65535), 53]
    # Signaling and its routes, entitlement, Redis, OCSP, tunnels of the web proxy, and what the values add.
    assert ports_of(rules, "TCP") == [53, 443, 8080, 80, 8444, 6379, 8443, 5432]


def test_without_a_need_for_tcp_there_is_no_rule() -> None:
    policy = Rendered({"config": {"ocsp": {"stapling": False}}}).one("NetworkPolicy")["spec"]
    assert ports_of(policy["egress"], "TCP") == [53]


# Mistakes


@pytest.mark.parametrize(
    ("values", "where", "expected"),
    [
        ({"replica": 3}, "", "'replica' not allowed"),
        ({"replicas": "two"}, "/replicas", "want integer"),
        ({"replicas": -1}, "/replicas", "minimum: got -1, want 0"),
        ({"image": {"digest": "latest"}}, "/image/digest", "does not match pattern '^(sha256:"),
        ({"config": {"upstreams": []}}, "/config/upstreams", "minItems: got 0, want 1"),
        ({"config": {"upstreams": [{"name": "a"}]}}, "/config/upstreams/0", "missing property 'address'"),
        ({"config": {"upstreams": [{**UPSTREAM, "address": "a"}]}}, "/config/upstreams/0/address", "does not match"),
        ({"config": {"limits": {"lame_duck_s": "8s"}}}, "/config/limits/lame_duck_s", "want number"),
        ({"config": {"limits": {"drain_timeout_s": None}}}, "/config/limits", "missing property 'drain_timeout_s'"),
        ({"config": {"limits": {"drain_timeout_s": 90_000}}}, "/config/limits/drain_timeout_s", "maximum: got 90,000"),
        ({"config": {"log": "debug"}}, "/config/log", "want array or object"),
        # A secret belongs into a Secret. It is not shown.
        ({"config": {"upstreams": [{**UPSTREAM, "secret": "hunter2"}]}}, "/config/upstreams/0/secret", "want object"),
        ({"config": {"cluster": {"password": "hunter2"}}}, "/config/cluster/password", "want object"),
        ({"config": {"entitlement": {"token": "hunter2"}}}, "/config/entitlement/token", "want object"),
        ({"config": {"web_proxy": {"users": {"ann": "hunter2"}}}}, "/config/web_proxy/users/ann", "want object"),
        ({"listen": {"tlsPort": 70_000}}, "/listen/tlsPort", "maximum: got 70,000, want 65,535"),
        ({"listen": {"hosts": ["127.0.0.1"]}}, "/listen/hosts/0", "value must be one of"),
        ({"listen": {"workers": 0}}, "/listen/workers", "minimum: got 0, want 1"),
        ({"certificates": []}, "/certificates", "minItems: got 0, want 1"),
        ({"secrets": [{"name": "probe"}]}, "/secrets/0", "missing property 'keys'"),
        ({"expose": {"type": "Ingress"}}, "/expose/type", "value must be one of"),
        ({"preStopSeconds": 0.5}, "/preStopSeconds", "want integer"),
        ({"networkPolicy": {"upstreams": ["turn.test"]}}, "/networkPolicy/upstreams/0", "does not match pattern"),
        ({"serviceMonitor": {"interval": 15}}, "/serviceMonitor/interval", "want string"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_in_values(values: Values, where: str, expected: str) -> None:
    with pytest.raises(helm_python.HelmError) as refused:
        Rendered(values)
    told = str(refused.value)
    assert f"at '{where}': " in told
    assert expected in told
    assert "hunter2" not in told


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (
            {"config": {"listen": {"workers": 2}}},
            "config.listen: the chart writes this table; expected the values listen, admin and certificates instead",
        ),
        (
            {"config": {"access": {"allow": [None]}}},
            "config: expected no null in a list or an inner table",
        ),
        (
            {"listen": {"clientCertificates": "optional"}},
            "listen.clientCa: expected a file with authorities, because of listen.clientCertificates",
        ),
        (
            {"autoscaling": {"enabled": True, "minReplicas": 7}},
            "autoscaling.maxReplicas: expected at least autoscaling.minReplicas",
        ),
        (
            {"serviceMonitor": {"enabled": True}},
            "serviceMonitor.serverName: expected the name in the first certificate",
        ),
    ],
)
def test_mistakes_that_templates_find(values: Values, complaint: str) -> None:
    with pytest.raises(helm_python.HelmRenderError, match=re.escape(complaint)):
        Rendered(values)


# The values' own file


def test_the_schema_knows_each_value_and_no_other() -> None:
    schema, values, metadata = chart().schema, chart().values, chart().metadata
    assert schema is not None
    assert set(schema["properties"]) - {"global"} == set(values)
    for name, part in schema["properties"].items():
        if part.get("additionalProperties") is False:
            assert set(part["properties"]) == set(values[name]), name
    assert metadata["appVersion"] == __version__
    assert metadata["kubeVersion"].startswith(f">={OLDEST}.")


def test_the_upstreams_are_those_of_the_sample() -> None:
    sample = config.load(DEPLOY / "relay.toml").upstreams
    found = tomllib.loads(Rendered({}).relay_toml)["upstreams"]
    assert found == [{"name": one.name, "region": one.region, "address": str(one.address)} for one in sample]
