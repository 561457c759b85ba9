"""The configuration: every setting with its unit, its default and the reason for it. It is written in TOML.

``load`` returns a Config, or raises OperatorError with one line for each mistake: key, value, what was expected.
Relative paths count from the configuration file.

Each topic has a file, and each table of the configuration has a class in it (``[health]`` is ``HealthSettings``)
-----------------------------------------------------------------------------------------------------------------
voice        [[upstreams]] [[routes]] [health] [media] [quality]: TURN servers, the media itself, how calls are judged
signaling    [signaling]: the servers for socket.io and REST
web_proxy    [web_proxy]: who may use CONNECT, and where to
entitlement  [entitlement]: who may place calls; also files of users
cluster      [cluster]: what several relays share
limits       [access] [limits]: who is served, how much of everything, and all time limits of a connection or flow
operation    [listen] [admin] [balancers] [[certificates]] [ocsp] [capture] [catalog] [log]: what the operator sets up
             around all that

``values`` has the types of settings, such as addresses, names and seconds, with the text for what is not one.
``reading`` turns a file into checked settings, or into lines that explain its mistakes.

A new setting goes into the class of its table, with its reason. ``deploy/relay.toml`` has every setting, and so has
``docs/``, on its topic's page. SIGHUP can change all except [listen], [cluster] and [log]: ``Gateway.reload`` hands
them on.
A setting that the data plane needs is also a field of ``PlaneSettings``, which ``gateway.plane_bounds`` fills.

A check of several settings goes into the class that has them all. Config has the checks of several tables.
``gateway.checking.files`` looks at the files that settings name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from relay.config.cluster import ClusterSettings
from relay.config.entitlement import EntitledUser, EntitlementSettings, parse_users
from relay.config.limits import AccessSettings, LimitsSettings
from relay.config.operation import (
    AdminSettings,
    BalancerSettings,
    CaptureSettings,
    CatalogSettings,
    CertificateFiles,
    ListenSettings,
    LogSettings,
    OcspSettings,
)
from relay.config.reading import check_tree, read_toml
from relay.config.signaling import SignalingRoute, SignalingSettings
from relay.config.values import AtLeastOne, KeyedError, Name, Section
from relay.config.voice import HealthSettings, MediaSettings, QualitySettings, Route, UpstreamServer
from relay.config.web_proxy import WebProxySettings

__all__ = [
    "AccessSettings",
    "AdminSettings",
    "BalancerSettings",
    "CaptureSettings",
    "CatalogSettings",
    "CertificateFiles",
    "ClusterSettings",
    "Config",
    "EntitledUser",
    "EntitlementSettings",
    "HealthSettings",
    "LimitsSettings",
    "ListenSettings",
    "LogSettings",
    "MediaSettings",
    "Name",
    "OcspSettings",
    "QualitySettings",
    "Route",
    "SignalingRoute",
    "SignalingSettings",
    "UpstreamServer",
    "WebProxySettings",
    "load",
    "parse",
    "parse_users",
]


class Config(Section):
    """All tables. ``deploy/relay.toml`` has every setting of them."""

    listen: ListenSettings = ListenSettings()
    admin: AdminSettings = AdminSettings()
    balancers: BalancerSettings = BalancerSettings()
    certificates: AtLeastOne[CertificateFiles]
    ocsp: OcspSettings = OcspSettings()
    upstreams: AtLeastOne[UpstreamServer]
    routes: tuple[Route, ...] = ()
    signaling: SignalingSettings = SignalingSettings()
    web_proxy: WebProxySettings = WebProxySettings()
    media: MediaSettings = MediaSettings()
    quality: QualitySettings = QualitySettings()
    capture: CaptureSettings = CaptureSettings()
    entitlement: EntitlementSettings = EntitlementSettings()
    cluster: ClusterSettings = ClusterSettings()
    health: HealthSettings = HealthSettings()
    access: AccessSettings = AccessSettings()
    limits: LimitsSettings = LimitsSettings()
    catalog: CatalogSettings = CatalogSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        names = [upstream.name for upstream in self.upstreams]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"upstreams: the name {twice[0]!r} is given twice")
        patterns = [route.server_name for route in self.routes]
        if twice := sorted({name for name in patterns if patterns.count(name) > 1}):
            raise ValueError(f"routes: the server_name {twice[0]!r} is given twice")
        return self

    @model_validator(mode="after")
    def _balancers(self) -> Self:
        if self.listen.proxy_protocol and not self.balancers.networks:
            raise ValueError("balancers.networks: expected the balancers' networks, because of listen.proxy_protocol")
        return self

    @model_validator(mode="after")
    def _admin_is_protected(self) -> Self:
        if self.listen.admin_has_tls and self.admin.token_hash is None:
            why = (
                f"{self.listen.admin}: other machines reach it, so it needs admin.token_hash (see relay admin-token);"
                " or listen on 127.0.0.1, or on unix:/run/cloud9-relay/admin.sock; listen.admin_unprotected = true"
                " leaves it open to all, without TLS"
            )
            raise KeyedError("listen.admin", why)
        return self

    @model_validator(mode="after")
    def _regions(self) -> Self:
        """A region without upstreams is a typing error: calls would be refused."""
        regions = {upstream.region for upstream in self.upstreams}
        for number, route in enumerate(self.routes):
            if route.region not in regions:
                raise ValueError(f"routes.{number}.region: {route.region!r} has no upstream; known: {sorted(regions)}")
        for number, user in enumerate(self.entitlement.users):
            if unknown := sorted(set(user.regions or ()) - regions):
                key = f"entitlement.users.{number}.regions"
                raise ValueError(f"{key}: {unknown[0]!r} has no upstream; known: {sorted(regions)}")
        return self


def load(path: Path) -> Config:
    """Read and check a configuration file. Raises OperatorError, with one line for each mistake."""
    return parse(read_toml(path), folder=path.parent, source=str(path))


def parse(tree: dict[str, Any], *, folder: Path, source: str) -> Config:
    """Check a tree of settings. ``source`` begins each line of the OperatorError that is raised for mistakes."""
    return check_tree(Config, tree, folder=folder, source=source)
