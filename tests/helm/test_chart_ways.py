"""Where a pod may go and who may come in (S29): what the values name, and nothing else."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from kit.chart import ROOT, Chart, template

Rendered = Callable[[str], Chart]
# Of clouds: where pods would find credentials of their node; the last one is the host of Azure, which answers pods too.
METADATA = ("169.254.169.254", "169.254.170.2", "fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")
GUARDED = ("ha", "sentinel", "bundled-redis", "monitoring", "all-on", "deferred")


def policy_of(chart: Chart) -> dict[str, Any]:
    (found,) = [
        p for p in chart.all("NetworkPolicy") if p["metadata"]["labels"]["app.kubernetes.io/component"] == "router"
    ]
    return found["spec"]


def lets_out(peer: dict[str, Any], address: str) -> bool:
    block = peer.get("ipBlock")
    if block is None:
        return False
    ip = ipaddress.ip_address(address)
    networks = [ipaddress.ip_network(block["cidr"]), *(ipaddress.ip_network(n) for n in block.get("except", ()))]
    inside = [ip in network for network in networks if network.version == ip.version]
    return bool(inside) and ip.version == networks[0].version and inside[0] and not any(inside[1:])


@pytest.mark.parametrize("value_set", GUARDED)
def test_no_way_leads_to_the_clouds_metadata(rendered: Rendered, value_set: str) -> None:
    """Whoever gets the router to fetch an address of theirs finds no credential of the node."""
    spec = policy_of(rendered(value_set))
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    for rule in spec["egress"]:
        assert rule["ports"], "a rule without ports opens all"
        assert rule["to"], "a rule without peers opens all"
        for peer in rule["to"]:
            assert [address for address in METADATA if lets_out(peer, address)] == []


@pytest.mark.parametrize("value_set", GUARDED)
def test_the_upstream_is_looked_for_in_public_alone(rendered: Rendered, value_set: str) -> None:
    """The port of the upstream is open to public addresses, or to those named; to none of the house."""
    rule = policy_of(rendered(value_set))["egress"][1]
    assert rule["ports"] == [{"port": 443, "protocol": "TCP"}]
    for address in ("10.0.0.1", "172.16.3.4", "192.168.1.1", "127.0.0.1", "100.64.0.1", "fd12::1", "::1"):
        assert not any(lets_out(peer, address) for peer in rule["to"])
    public = "203.0.113.7" if value_set == "all-on" else "160.79.104.10"
    assert any(lets_out(peer, public) for peer in rule["to"])


@pytest.mark.parametrize(
    ("value_set", "ports"),
    [
        ("ha", [53, 443, 6380]),
        ("sentinel", [53, 443, 6379, 26379]),
        ("bundled-redis", [53, 443, 6379]),
        ("monitoring", [53, 443, 4318]),
        ("all-on", [53, 443, 4318, 6379, 6380, 8443]),
        ("deferred", [53, 443, 6379, 6390, 8318, 8443, 9443]),
    ],
)
def test_only_what_is_set_is_open(rendered: Rendered, value_set: str, ports: list[int]) -> None:
    """Name service and upstream always; Redis and a collector where there is one."""
    rules = policy_of(rendered(value_set))["egress"]
    assert sorted({port["port"] for rule in rules for port in rule["ports"]}) == ports


def test_who_may_come_in_is_said_for_each_listener(rendered: Rendered) -> None:
    """The API is for everybody unless peers are named, the admin listener for the namespace."""
    api, admin = policy_of(rendered("bundled-redis"))["ingress"]
    assert "from" not in api
    assert admin == {"ports": [{"port": "admin", "protocol": "TCP"}], "from": [{"podSelector": {}}]}
    named = policy_of(rendered("all-on"))["ingress"]
    assert "apps" in str(named[0]["from"])
    assert "monitoring" in str(named[1]["from"])


def test_the_bundled_redis_is_for_the_routers_pods_alone(rendered: Rendered) -> None:
    """It has no password, so a policy of its own keeps all others away, and it may go nowhere."""
    spec = rendered("bundled-redis").one("NetworkPolicy", "r-model-router-redis")["spec"]
    assert spec["egress"] == []
    (rule,) = spec["ingress"]
    assert rule["from"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "router"


# What the values name is reached, without a word about ports.

BASE: dict[str, Any] = {
    "admin": {"token": "t"}, "tenantSecret": {"value": "s"}, "webhookSecret": {"value": "w"},
    "networkPolicy": {"enabled": True},
}  # fmt: skip
PRIVATE, PUBLIC = "10.1.2.3", "93.184.215.14"


def guarded(helm: str, values: dict[str, Any], *more: str) -> Chart:
    """The chart with a NetworkPolicy, its values merged one level deep."""
    merged = dict(BASE)
    for name, value in values.items():
        merged[name] = {**merged.get(name, {}), **value}
    said = template(helm, *more, values=merged)
    assert said.status == 0, said.err
    return Chart(tuple(document for document in yaml.safe_load_all(said.out) if document), said.out)


def is_let_out(chart: Chart, address: str, port: int, protocol: str = "TCP") -> bool:
    """Whether the router's pods may go there."""
    return any(
        {"port": port, "protocol": protocol} in rule["ports"] and any(lets_out(peer, address) for peer in rule["to"])
        for rule in policy_of(chart)["egress"]
    )


# Values → ways that are open (address, port), and ways that are not.
Way = tuple[str, int]
NAMED: list[tuple[dict[str, Any], list[Way], list[Way]]] = [
    ({}, [(PUBLIC, 443)], [(PRIVATE, 443), (PUBLIC, 6379), (PRIVATE, 6379), (PRIVATE, 4318)]),
    ({"upstream": {"url": "https://gateway.example.com:8443"}}, [(PUBLIC, 8443)], [(PUBLIC, 443)]),
    ({"upstream": {"url": "http://gateway.example.com/"}}, [(PUBLIC, 80)], [(PUBLIC, 443)]),
    ({"redis": {"url": "redis://redis.default"}}, [(PRIVATE, 6379), (PUBLIC, 6379)], [(PRIVATE, 26379)]),
    ({"redis": {"url": "rediss://redis.example.com:6380/0"}}, [(PRIVATE, 6380)], [(PRIVATE, 6379)]),
    ({"redis": {"url": "redis://[fd00::7]"}}, [(PRIVATE, 6379)], [(PRIVATE, 7)]),
    ({"redis": {"url": "redis://[fd00::7]:6390/3"}}, [(PRIVATE, 6390)], [(PRIVATE, 6379)]),
    ({"redis": {"url": "redis+sentinel://a,b/primary"}}, [(PRIVATE, 26379), (PRIVATE, 6379)], []),
    ({"redis": {"url": "redis+sentinel://a:5000,b/primary/0"}}, [(PRIVATE, 5000), (PRIVATE, 26379)], []),
    (
        {"redis": {"url": "redis+sentinel://a/primary"}, "networkPolicy": {"enabled": True, "redisPorts": [7000]}},
        [(PRIVATE, 26379), (PRIVATE, 7000), (PRIVATE, 6379)],
        [],
    ),
    (  # the port that is named is of the other Redis; where the sentinels' servers are is not said
        {
            "redis": {"url": "redis+sentinel://a/primary"}, "jobsRedis": {"existingSecret": "ours"},
            "networkPolicy": {"enabled": True, "redisPorts": [6390]},
        },
        [(PRIVATE, 26379), (PRIVATE, 6379), (PRIVATE, 6390)],
        [],
    ),
    ({"redis": {"url": "rediss+cluster://a,b:7001"}}, [(PRIVATE, 6379), (PRIVATE, 7001)], [(PRIVATE, 26379)]),
    (
        {"redis": {"url": "redis://a"}, "jobsRedis": {"url": "redis://b:6390"}},
        [(PRIVATE, 6379), (PRIVATE, 6390)],
        [],
    ),
    (
        {"redis": {"existingSecret": "ours"}, "networkPolicy": {"enabled": True, "redisPorts": [6380]}},
        [(PRIVATE, 6380)],
        [(PRIVATE, 6379)],
    ),
    ({"otel": {"endpoint": "http://collector:4318"}}, [(PRIVATE, 4318)], []),
    ({"otel": {"endpoint": "https://otel.example.com/base"}}, [(PRIVATE, 443), (PUBLIC, 443)], [(PRIVATE, 4318)]),
    (
        {"otel": {"endpoint": "http://collector"}, "networkPolicy": {"enabled": True, "otlpPorts": [4318]}},
        [(PRIVATE, 80), (PRIVATE, 4318)],
        [],
    ),
    (
        {
            "upstream": {"url": "http://gateway.apps.svc"},
            "networkPolicy": {
                "enabled": True, "upstreamPorts": [8080], "upstreamTo": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
            },
        },
        [(PRIVATE, 80), (PRIVATE, 8080)],
        [(PUBLIC, 80)],
    ),
    ({"upstream": {"url": "http://127.0.0.1:9000"}}, [], [(PRIVATE, 9000)]),  # a sidecar, which no policy keeps away
    ({"settings": {"webhook_hosts": "hooks.example.com"}}, [(PUBLIC, 443)], [(PRIVATE, 443)]),
    (
        {"settings": {"webhook_hosts": "*.example.org:8443, 10.1.2.3:9443,[fd00::7]:9444 , localhost:9000"}},
        [(PUBLIC, 8443), (PRIVATE, 9443), ("fd00::7", 9444)],
        [(PRIVATE, 8443), ("10.1.2.4", 9443), (PUBLIC, 9443), ("fd00::8", 9444), (PUBLIC, 9000)],
    ),
    (
        {
            "settings": {"webhook_hosts": "hooks.example.com"},
            "networkPolicy": {"enabled": True, "upstreamTo": [{"ipBlock": {"cidr": "203.0.113.0/24"}}]},
        },
        [(PUBLIC, 443)],  # whatever is said of the upstream
        [],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("values", "ways", "closed"), NAMED, ids=range(len(NAMED)))
def test_what_the_values_name_is_reached_and_nothing_else(
    helm: str, values: dict[str, Any], ways: list[Way], closed: list[Way]
) -> None:
    """Ports come from the URLs, also those that are not written; whatever is named, metadata addresses stay closed."""
    chart = guarded(helm, values)
    assert [way for way in ways if not is_let_out(chart, *way)] == []
    assert [way for way in closed if is_let_out(chart, *way)] == []
    ports = {port["port"] for rule in policy_of(chart)["egress"] for port in rule["ports"]}
    assert [(at, port) for at in METADATA for port in ports if is_let_out(chart, at, port)] == []


def test_names_are_looked_up_where_the_values_say(helm: str, rendered: Rendered) -> None:
    """The pods of kube-dns; a cache on the node by its address; OpenShift's, which has another port."""
    usual = policy_of(rendered("ha"))["egress"][0]
    assert usual == {
        "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}],
        "to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}],
    }
    cached = rendered("deferred")
    assert is_let_out(cached, "169.254.20.10", 53, "UDP")
    assert not is_let_out(cached, "169.254.169.254", 53, "UDP")
    peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "openshift-dns"}}}
    other = guarded(helm, {"networkPolicy": {"enabled": True, "dnsPorts": [5353], "dnsTo": [peer]}})
    assert policy_of(other)["egress"][0] == {
        "ports": [{"port": 5353, "protocol": "UDP"}, {"port": 5353, "protocol": "TCP"}],
        "to": [peer],
    }


def installations() -> Iterator[list[str]]:
    """The `--set` arguments of each Helm command of the guide, with what the guide adds for a NetworkPolicy."""
    guide = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    for block in re.findall(r"```sh\n(.*?)```", guide, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("helm upgrade"):
                words = shlex.split(line)
                yield [word for n, word in enumerate(words) if word == "--set" or words[n - 1] == "--set"]


def test_the_guides_own_commands_reach_their_redis_with_a_network_policy_on(helm: str) -> None:
    """As they are written, with `networkPolicy.enabled` added: the port of each URL, in values or a Secret, is open."""
    guide = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    (install, jobs, _) = installations()
    on = ["--set", "networkPolicy.enabled=true"]
    said = template(helm, *install, *on)
    assert said.status == 0, said.err
    chart = Chart(tuple(d for d in yaml.safe_load_all(said.out) if d), said.out)
    assert is_let_out(chart, PRIVATE, 6380)
    assert is_let_out(chart, PUBLIC, 443)
    # The Redis of jobs is in a Secret: the guide names its port, and without that the installation is refused.
    without = template(helm, *install, *jobs, *on)
    assert without.status != 0
    assert "networkPolicy.redisPorts" in without.err
    (port,) = re.findall(r"redis-url=\"rediss://\S+:(\d+)/0\"", guide)
    (added,) = re.findall(r"`--set '(networkPolicy\.redisPorts=\S+)'`", guide)
    said = template(helm, *install, *jobs, *on, "--set", added)
    assert said.status == 0, said.err
    chart = Chart(tuple(d for d in yaml.safe_load_all(said.out) if d), said.out)
    assert is_let_out(chart, PRIVATE, int(port))
