"""What the chart renders is what Kubernetes takes, and its objects fit each other, for every value set."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import kubernetes_validate
import pytest
from kit.chart import CHART, NAMESPACE, VALUE_SETS, Chart, run_helm, template
from yamllint import linter
from yamllint.config import YamlLintConfig

Rendered = Callable[[str], Chart]
LONG = {"admin": {"token": "t"}, "tenantSecret": {"value": "s"}, "fullnameOverride": "n" * 63}
every = pytest.mark.parametrize("value_set", VALUE_SETS)

# Kinds that the chart may make and that Kubernetes itself does not have: what is said of them is tested below.
FOREIGN = ("HTTPRoute", "ServiceMonitor", "PrometheusRule")


def test_there_are_enough_value_sets() -> None:
    """From the least to everything at once; a file of ci/ is a case here and for the tools of chart repositories."""
    assert len(VALUE_SETS) >= 16
    assert {"minimal", "ha", "sentinel", "cluster", "all-off", "all-on"} <= set(VALUE_SETS)


@every
def test_kubernetes_takes_every_object(rendered: Rendered, value_set: str) -> None:
    """Each object fits the schema of the current version, strictly: no field is unknown."""
    for each in rendered(value_set).objects:
        if each["kind"] not in FOREIGN:
            kubernetes_validate.validate(each, "1.37", strict=True)


def test_a_field_that_kubernetes_does_not_know_is_found(rendered: Rendered) -> None:
    """The check above can fail."""
    service = rendered("minimal").one("Service", "r-model-router")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**service, "spec": {**service["spec"], "prots": []}}, "1.37", strict=True)


@every
def test_helm_finds_nothing_to_complain_of(helm: str, value_set: str) -> None:
    """`helm lint --strict` passes: no warning is left."""
    values = CHART / "ci" / f"{value_set}-values.yaml"
    said = run_helm(helm, "lint", str(CHART), "--strict", "--quiet", "--values", str(values))
    assert said.status == 0, said.out + said.err


def test_the_notes_say_how_to_send_a_request(helm: str) -> None:
    """After an installation a user knows the next command, and what is only good for a trial."""
    said = run_helm(
        helm, "install", "r", str(CHART), "--dry-run=client", "--namespace", NAMESPACE,
        "--values", str(CHART / "ci" / "bundled-redis-values.yaml"),
    )  # fmt: skip
    assert said.status == 0, said.err
    for part in (
        "helm test r -n ns",
        "curl -i http://127.0.0.1:8080/v1/messages",
        "WARNING: bundledRedis is for trials",
    ):
        assert part in said.out


@pytest.mark.parametrize(
    "name", ["values.yaml", "Chart.yaml", *(f"ci/{value_set}-values.yaml" for value_set in VALUE_SETS)]
)
def test_yamllint_is_content(name: str) -> None:
    """Duplicate keys, tabs, odd indentation, `yes` for `true`: nothing of that in files that people edit."""
    rules = (
        "{extends: default, rules: {document-start: disable, line-length: {max: 180}, "
        "braces: {max-spaces-inside: 1}, brackets: {max-spaces-inside: 1}, comments: {min-spaces-from-content: 1}}}"
    )
    problems = linter.run((CHART / name).read_text(encoding="utf-8"), YamlLintConfig(rules))
    assert [str(problem) for problem in problems] == []


def labels_of(chart: Chart) -> list[dict[str, str]]:
    return [metadata["labels"] for _, metadata, _ in chart.pods()]


def selectors(chart: Chart) -> Iterator[tuple[str, dict[str, str]]]:
    for each in chart.objects:
        name, spec = f"{each['kind']} {each['metadata']['name']}", each.get("spec", {})
        if each["kind"] == "Service":
            yield name, spec["selector"]
        elif each["kind"] == "NetworkPolicy":
            yield name, spec["podSelector"]["matchLabels"]
        elif each["kind"] in ("Deployment", "StatefulSet", "PodDisruptionBudget"):
            yield name, spec["selector"]["matchLabels"]


@every
def test_what_selects_pods_finds_those_of_one_component(rendered: Rendered, value_set: str) -> None:
    """A Service never leads to the pod of `helm test`, nor to the bundled Redis, and never to nothing."""
    chart = rendered(value_set)
    for name, selector in selectors(chart):
        found = {
            labels["app.kubernetes.io/component"] for labels in labels_of(chart) if selector.items() <= labels.items()
        }
        assert len(found) == 1, f"{name} selects {found}"


@every
def test_what_a_pod_needs_is_there_or_is_the_users_own(rendered: Rendered, value_set: str) -> None:
    """ConfigMaps and Secrets that pods name are made by the chart, or named in the values; mounts name volumes."""
    chart = rendered(value_set)
    own = {(each["kind"], each["metadata"]["name"]) for each in chart.objects}
    values = (CHART / "ci" / f"{value_set}-values.yaml").read_text(encoding="utf-8")
    for pod, _, spec in chart.pods():
        volumes = {volume["name"] for volume in spec.get("volumes", ())} | {
            claim["metadata"]["name"]
            for each in chart.all("StatefulSet")
            for claim in each["spec"]["volumeClaimTemplates"]
        }
        for container in spec["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes, pod
        for kind, name in references(spec):
            assert (kind, name) in own or re.search(rf"\b{re.escape(name)}\b", values), f"{pod} needs {kind} {name}"
    if not chart.all("ServiceAccount"):
        assert chart.workload()["spec"]["template"]["spec"]["serviceAccountName"] == "default"


def references(node: Any) -> Iterator[tuple[str, str]]:
    """(kind, name) of each ConfigMap and Secret that a pod names."""
    if isinstance(node, list):
        for each in node:
            yield from references(each)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ("configMap", "configMapRef"):
                yield "ConfigMap", value["name"]
            elif key in ("secret", "secretRef", "secretKeyRef"):
                yield "Secret", value["name"]
            else:
                yield from references(value)


def test_a_route_of_the_gateway_leads_to_the_service(rendered: Rendered) -> None:
    """Its backend and port are those of the API's Service; a stream has no time limit, and nothing is sent twice."""
    chart = rendered("httproute")
    route = chart.one("HTTPRoute")
    (rule,) = route["spec"]["rules"]
    (backend,) = rule["backendRefs"]
    service = chart.one("Service", backend["name"])
    assert backend["port"] in [port["port"] for port in service["spec"]["ports"]]
    assert set(rule["timeouts"].values()) == {"0s"}
    assert "retry" not in rule
    assert route["apiVersion"] == "gateway.networking.k8s.io/v1"
    assert route["spec"]["parentRefs"] == [{"name": "public", "namespace": "gateways"}]


@pytest.mark.parametrize(
    ("value_set", "secret"), [("monitoring", "r-model-router-secrets"), ("all-on", "router-admin")]
)
def test_prometheus_finds_the_admin_service_and_its_token(rendered: Rendered, value_set: str, secret: str) -> None:
    """The ServiceMonitor selects the admin Service alone, on a port that it has, with the token of the listener."""
    chart = rendered(value_set)
    spec = chart.one("ServiceMonitor")["spec"]
    wanted = spec["selector"]["matchLabels"].items()
    (service,) = [each for each in chart.all("Service") if wanted <= each["metadata"]["labels"].items()]
    (endpoint,) = spec["endpoints"]
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert service["metadata"]["name"].endswith("-admin")
    assert spec["namespaceSelector"] == {"matchNames": [NAMESPACE]}
    assert endpoint["authorization"] == {"type": "Bearer", "credentials": {"name": secret, "key": "admin-token"}}


def test_the_two_listeners_have_a_service_each(rendered: Rendered) -> None:
    """No Ingress, route or load balancer of the API leads to the admin listener."""
    chart = rendered("all-on")
    ports = {each["metadata"]["name"]: each["spec"]["ports"] for each in chart.all("Service")}
    assert [port["targetPort"] for port in ports["r-gateway"]] == ["api"]
    assert [port["targetPort"] for port in ports["r-gateway-admin"]] == ["admin"]
    assert chart.one("Service", "r-gateway-admin")["spec"]["type"] == "ClusterIP"
    for each in (*chart.all("Ingress"), *chart.all("HTTPRoute")):
        assert "admin" not in str(each["spec"])


def test_names_stay_within_what_kubernetes_takes(helm: str) -> None:
    """A long name is cut before the endings of the parts are added; a name of a Service has 63 characters at most."""
    said = template(helm, values={**LONG, "bundledRedis": {"enabled": True}})
    assert said.status == 0, said.err
    names = re.findall(r"^  name: (\S+)$", said.out, re.MULTILINE)
    assert names
    assert [name for name in names if len(name) > 63] == []


def test_the_same_values_render_the_same_bytes(helm: str, rendered: Rendered) -> None:
    """Nothing is random, nothing is looked up in the cluster: who compares sees no change where there is none."""
    again = template(helm, "--values", str(CHART / "ci" / "all-on-values.yaml"))
    assert again.out == rendered("all-on").text
    for path in (CHART / "templates").rglob("*"):
        if path.is_file():
            assert not re.search(r"\b(lookup|rand\w*|now|genPrivateKey|uuidv4)\b ", path.read_text(encoding="utf-8")), (
                path
            )
