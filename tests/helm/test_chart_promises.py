"""What the chart promises whatever its values: updates cut no stream, healthy pods stay, pods may do little."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit.chart import CHART, VALUE_SETS, Chart, run_helm, template
from kit.stage import always, stage

from router.settings import drain_timeout_s, resolve

Rendered = Callable[[str], Chart]
every = pytest.mark.parametrize("value_set", VALUE_SETS)
LAST_RESORT_S = 13  # after the drain a router that stands still ends itself (docs/operations.md, "Start and stop")


def routers(chart: Chart) -> dict[str, Any]:
    return chart.workload()["spec"]["template"]["spec"]


# F96: a rolling update under streaming load.


@every
def test_a_pod_has_longer_to_end_than_its_longest_stream(rendered: Rendered, value_set: str, tmp_path: Path) -> None:
    """The grace period covers the wait of `preStop`, the drain that the router is told, and its own last resort."""
    chart = rendered(value_set)
    settings = resolve({}, chart.environment(tmp_path)).settings
    sleeps = chart.router().get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    grace = routers(chart)["terminationGracePeriodSeconds"]
    assert grace >= sleeps + drain_timeout_s(settings) + LAST_RESORT_S


@every
def test_an_update_never_has_fewer_pods_than_asked_for(rendered: Rendered, value_set: str) -> None:
    """A Deployment starts a new pod first; a StatefulSet, whose pods have names, goes one by one."""
    workload = rendered(value_set).workload()
    if workload["kind"] == "Deployment":
        assert workload["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    else:
        assert workload["spec"]["updateStrategy"] == {"type": "RollingUpdate"}


def test_newcomers_are_sent_elsewhere_before_the_listener_closes(rendered: Rendered) -> None:
    """By default a pod that is told to stop waits first; the kubelet does that, so the image needs no shell."""
    assert rendered("minimal").router()["lifecycle"] == {"preStop": {"sleep": {"seconds": 10}}}


@every
def test_an_edit_of_a_policy_restarts_no_pod(rendered: Rendered, value_set: str) -> None:
    """The ConfigMap is mounted as a folder, which Kubernetes renews; no checksum of it is in the pod."""
    chart = rendered(value_set)
    for _, metadata, spec in chart.pods():
        assert "subPath" not in str(spec)
        checksums = [name for name in metadata.get("annotations", {}) if name.startswith("checksum/")]
        assert set(checksums) <= {"checksum/settings", "checksum/secrets"}
    (mount,) = [m for m in chart.router()["volumeMounts"] if m["name"] == "policies"]
    assert mount == {"name": "policies", "mountPath": "/etc/router/policies", "readOnly": True}


def test_other_policies_leave_the_pods_as_they_are(helm: str) -> None:
    """Two releases that differ in their policies have the same pod template; other settings make another one."""

    def pod(**more: Any) -> str:
        said = template(helm, "--show-only", "templates/workload.yaml", values={"admin": {"token": "t"}, **more})
        assert said.status == 0, said.err
        return said.out

    one, other = ({"policies": {"files": {"default.yaml": text}}} for text in ("version: 1", "version: 1 # edited"))
    assert pod(**one) == pod(**other)
    assert pod() != pod(settings={"log_level": "debug"})
    assert pod(rollOnChange=False) == pod(rollOnChange=False, settings={"log_level": "debug"})
    assert pod() != pod(admin={"token": "another"})


def test_the_policies_of_the_chart_are_those_of_the_checkout(rendered: Rendered) -> None:
    """They are one folder: what is shipped, tested and rendered is the same text."""
    (config,) = [c for c in rendered("minimal").all("ConfigMap") if c["metadata"]["name"].endswith("-policies")]
    files = {path.name: path.read_text(encoding="utf-8") for path in (CHART.parent.parent / "policies").glob("*.yaml")}
    assert config["data"].keys() == files.keys()
    assert {name: text.strip() for name, text in config["data"].items()} == {
        name: text.strip() for name, text in files.items()
    }


# F99: probes while something that is needed is away.


@every
def test_each_probe_asks_for_what_it_is_there_for(rendered: Rendered, value_set: str) -> None:
    """Liveness and start ask whether it answers, readiness whether it can serve; none asks upstream or Redis."""
    router = rendered(value_set).router()
    asked = {name: router[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert asked == {
        "startup": {"path": "/healthz", "port": "admin"},
        "liveness": {"path": "/healthz", "port": "admin"},
        "readiness": {"path": "/readyz", "port": "admin"},
    }
    assert {port["name"]: port["containerPort"] for port in router["ports"]} == {"api": 8080, "admin": 8081}


def test_a_pod_that_is_busy_is_not_restarted_for_it(rendered: Rendered) -> None:
    """Half a minute without an answer, not one slow look, ends a pod; newcomers go elsewhere long before."""
    router = rendered("minimal").router()
    liveness, readiness = router["livenessProbe"], router["readinessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 30
    assert readiness["periodSeconds"] * readiness["failureThreshold"] <= 10


# F100: limits, budgets, one pod, secrets, what stands in front.


@every
def test_every_container_has_a_limit_on_memory_and_asks_for_what_it_needs(rendered: Rendered, value_set: str) -> None:
    """A pod without a limit could take a node's memory; without a request it lands where there is none."""
    for pod, _, spec in rendered(value_set).pods():
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            resources = container["resources"]
            assert "memory" in resources["limits"], (pod, container["name"])
            assert {"cpu", "memory"} <= resources["requests"].keys(), (pod, container["name"])


@every
def test_more_than_one_pod_has_a_budget_and_is_spread(rendered: Rendered, value_set: str) -> None:
    """A drained node takes one pod at a time, and the loss of a node or a zone does not take all."""
    chart = rendered(value_set)
    scaled = chart.all("HorizontalPodAutoscaler")
    replicas = chart.workload()["spec"].get("replicas", 2)
    assert ("replicas" in chart.workload()["spec"]) != bool(scaled)
    assert len(chart.all("PodDisruptionBudget")) == (1 if replicas > 1 else 0)
    if replicas > 1:
        assert "topology.kubernetes.io/zone" in str(routers(chart)["topologySpreadConstraints"])


def test_the_default_is_more_than_one_pod(rendered: Rendered) -> None:
    """Whoever says nothing gets two, so that an update or a lost node leaves one."""
    assert rendered("minimal").workload()["spec"]["replicas"] == 2


@every
def test_no_secret_is_in_a_configmap_or_a_pod(rendered: Rendered, value_set: str) -> None:
    """What the values give as a secret is in the chart's Secret and nowhere else."""
    chart = rendered(value_set)
    secrets = [value for secret in chart.all("Secret") for value in secret["stringData"].values()]
    for each in chart.objects:
        if each["kind"] != "Secret":
            assert [secret[:4] for secret in secrets if secret in str(each)] == [], each["metadata"]["name"]


def test_the_secrets_of_the_users_own_make_none_of_the_chart(rendered: Rendered) -> None:
    """With `existingSecret` everywhere the chart has no Secret, and the pod's files come from those named."""
    chart = rendered("existing-secrets")
    assert chart.all("Secret") == []
    (volume,) = [v for v in routers(chart)["volumes"] if v["name"] == "secrets"]
    items = {
        item["path"]: item["key"] for source in volume["projected"]["sources"] for item in source["secret"]["items"]
    }
    assert items == {
        "admin-token": "admin",
        "upstream-api-key": "anthropic",
        "keys.yaml": "clients.yaml",
        "tenant-secret": "tenants",
    }


def test_the_password_of_redis_stays_in_its_secret(rendered: Rendered) -> None:
    """The URL is a variable from the Secret; settings are made from it by name."""
    env = {variable["name"]: variable for variable in rendered("redis-secret").router()["env"]}
    assert env["REDIS_URL"]["valueFrom"] == {"secretKeyRef": {"name": "redis-of-ours", "key": "url"}}
    assert env["ROUTER_CACHE"]["value"] == "$(REDIS_URL)?max_mb=128"
    assert env["ROUTER_JOBS"]["value"] == "$(REDIS_URL)"


@every
def test_nothing_is_deferred_that_would_end_with_a_pod(rendered: Rendered, value_set: str) -> None:
    """Requests are taken with 202 only into a Redis that was named for them; that of the answers may evict."""
    chart = rendered(value_set)
    (settings,) = [c for c in chart.all("ConfigMap") if c["metadata"]["name"].endswith("-settings")]
    is_named = any(variable["name"] == "JOBS_REDIS_URL" for variable in chart.router().get("env", ()))
    assert settings["data"]["ROUTER_DEFERRED"] == ("on" if is_named else "off")
    assert is_named == (value_set in ("all-on", "deferred"))


# Values → whether requests are taken, and what the notes say of it: the reason that is true there.
VOLUME = {"traces": {"storage": "volume"}}
KEPT = [
    ({"redis": {"url": "redis://a"}}, "off", "keeps answers and may evict, so they are not put there. Where that"),
    ({"redis": {"url": "redis://a", "jobs": True}}, "on", "WARNING: deferred requests are in the Redis that keeps"),
    ({"redis": {"url": "redis://a"}, "jobsRedis": {"url": "redis://b"}}, "on", "Deferred requests outlive the pods"),
    ({"bundledRedis": {"enabled": True}}, "off", "The bundled Redis may evict and has no disk"),
    (VOLUME, "off", "Each pod has a volume of its own, which the others do not see"),
    ({}, "off", "Nothing here is shared by the pods and outlives them"),
    ({"replicaCount": 1}, "off", "Nothing here outlives the pod"),  # an emptyDir ends with it
    ({"replicaCount": 1, **VOLUME}, "on", "on the volume of the one pod"),
    (
        {"replicaCount": 1, **VOLUME, "redis": {"url": "redis://a"}},
        "off",
        "nor on the volume of the pod while there is",
    ),
    ({"replicaCount": 1, **VOLUME, "autoscaling": {"enabled": True}}, "off", "Each pod has a volume of its own"),
]


@pytest.mark.parametrize(("values", "taken", "said"), KEPT, ids=range(len(KEPT)))
def test_the_user_is_told_where_deferred_requests_are(helm: str, values: dict[str, Any], taken: str, said: str) -> None:
    """After an installation: whether they are taken, what keeps them or why nothing does, what a client hears then."""
    shown = run_helm(
        helm, "install", "r", str(CHART), "--dry-run=client",
        values={"admin": {"token": "t"}, "tenantSecret": {"value": "s"}, **values},
    )  # fmt: skip
    assert shown.status == 0, shown.err
    assert f'ROUTER_DEFERRED: "{taken}"' in shown.out
    _, _, notes = shown.out.partition("NOTES:")
    assert said in notes
    assert "jobsRedis" in notes
    told = ("answered at once, at full price", "where a rule says `deferred: require`\nthey are refused with 503")
    assert [part in notes for part in told] == [taken == "off"] * 2


@pytest.mark.anyio
async def test_with_nothing_deferred_a_client_hears_what_the_notes_say() -> None:
    """The chart's default: what can wait is answered at once, and a rule that takes nothing else refuses."""
    wish = (b"prefer", b"respond-async")
    async with stage(policy=always(), deferred="off") as s:
        assert (await s.messages(wish)).status == 200
    async with stage(policy=always("deferred: require"), deferred="off") as s:
        replies = [await s.messages(), await s.messages(wish)]
        assert [reply.status for reply in replies] == [503, 503]


def test_what_others_bring_comes_before_what_the_chart_says(rendered: Rendered) -> None:
    """Of two sources with a variable Kubernetes takes the last one: a Secret with ROUTER_PORT changes no port."""
    sources = rendered("all-on").router()["envFrom"]
    assert [next(iter(source)) for source in sources] == ["secretRef", "configMapRef"]


def test_labels_of_ones_own_are_added_and_none_is_there_twice(helm: str) -> None:
    """A label for all objects may have another value on pods; those that select stay."""
    said = template(
        helm, "--show-only", "templates/workload.yaml",
        values={"admin": {"token": "t"}, "commonLabels": {"team": "a"}, "podLabels": {"team": "b", "tier": "edge"}},
    )  # fmt: skip
    assert said.status == 0, said.err
    _, _, pod = said.out.partition("  template:\n")
    labels, _, _ = pod.partition("annotations:")
    assert re.findall(r"^ +(\S+: \S+)$", labels, re.MULTILINE) == [
        "app.kubernetes.io/component: router",
        "app.kubernetes.io/instance: r",
        "app.kubernetes.io/managed-by: Helm",
        "app.kubernetes.io/name: model-router",
        "app.kubernetes.io/part-of: model-router",
        "app.kubernetes.io/version: 0.1.0",
        "helm.sh/chart: model-router-0.1.0",
        "team: b",
        "tier: edge",
    ]


def test_while_the_autoscaler_has_its_say_no_number_of_pods_is_named(rendered: Rendered) -> None:
    """Each update would set it back; docs/kubernetes.md says what the switch does to a release that runs."""
    spec = rendered("autoscaling").workload()["spec"]
    assert "replicas" not in spec
    assert "leaves one pod for a moment" in (CHART.parent.parent / "docs/kubernetes.md").read_text(encoding="utf-8")


def test_deferred_requests_may_have_a_redis_of_their_own(rendered: Rendered) -> None:
    """One that never evicts and has a disk, while that of answers evicts; its URL comes from a Secret likewise."""
    env = {variable["name"]: variable for variable in rendered("all-on").router()["env"]}
    assert env["JOBS_REDIS_URL"]["valueFrom"] == {"secretKeyRef": {"name": "redis-for-jobs", "key": "redis-url"}}
    assert env["ROUTER_JOBS"]["value"] == "$(JOBS_REDIS_URL)"
    assert env["ROUTER_FLEET"]["value"] == env["ROUTER_AFFINITY"]["value"] == "$(REDIS_URL)"
    names = [variable["name"] for variable in rendered("all-on").router()["env"]]
    assert len(set(names)) == len(names)
    assert names.index("JOBS_REDIS_URL") < names.index("ROUTER_JOBS")  # Kubernetes puts in only what stands before


def test_an_ingress_neither_buffers_nor_cuts_a_stream(rendered: Rendered) -> None:
    """nginx passes each event on, waits for an hour, and takes a large body; what the user says wins."""
    annotations = rendered("ingress").one("Ingress")["metadata"]["annotations"]
    nginx = {name.rpartition("/")[2]: value for name, value in annotations.items() if name.startswith("nginx.")}
    assert nginx["proxy-buffering"] == "off"
    assert nginx["proxy-request-buffering"] == "off"
    assert int(nginx["proxy-read-timeout"]) >= 3600
    assert int(nginx["proxy-send-timeout"]) >= 3600
    assert nginx["proxy-next-upstream"] == "off"  # the router knows what may be sent twice
    assert nginx["proxy-body-size"] == "64m"
    assert annotations["cert-manager.io/cluster-issuer"] == "letsencrypt"
    other = rendered("all-on").one("Ingress")["metadata"]["annotations"]
    assert other == {"haproxy.org/timeout-server": "1h"}


def test_traces_on_a_volume_make_a_stateful_set(rendered: Rendered) -> None:
    """Each pod has a volume of its own, which outlives it; elsewhere the folder ends with the pod and is bounded."""
    kept = rendered("traces-on-volume")
    (claim,) = kept.one("StatefulSet")["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["resources"] == {"requests": {"storage": "20Gi"}}
    assert claim["spec"]["storageClassName"] == "fast"
    assert kept.one("StatefulSet")["spec"]["serviceName"] in [s["metadata"]["name"] for s in kept.all("Service")]
    (lost,) = [v for v in routers(rendered("minimal"))["volumes"] if v["name"] == "traces"]
    assert lost["emptyDir"] == {"sizeLimit": "4Gi"}


# S28: what a pod may do.


@every
def test_every_pod_fits_the_restricted_profile(rendered: Rendered, value_set: str) -> None:
    """Not root, root file system read-only, no capability, no way to more rights, no token, nothing of the host."""
    for pod, _, spec in rendered(value_set).pods():
        assert spec["automountServiceAccountToken"] is False, pod
        assert spec["enableServiceLinks"] is False, pod
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), pod
        assert [v for v in spec.get("volumes", ()) if "hostPath" in v] == [], pod
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            if container["name"] == "sidecar":  # the user's own
                continue
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "runAsNonRoot": True,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            }, (pod, container["name"])
            assert not container["image"].endswith(":latest")


def test_the_router_runs_as_the_user_of_the_image_unless_the_platform_gives_one(rendered: Rendered) -> None:
    """10001 is the user of the Dockerfile; with null the platform chooses, as OpenShift does."""
    assert {"runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001}.items() <= routers(rendered("minimal"))[
        "securityContext"
    ].items()
    assert not {"runAsUser", "runAsGroup", "fsGroup"} & routers(rendered("all-off"))["securityContext"].keys()


def test_one_folder_can_be_written_and_no_other(rendered: Rendered) -> None:
    """Traces and policy history are there; policies and secrets are mounted for reading."""
    mounts = rendered("minimal").router()["volumeMounts"]
    assert [m["mountPath"] for m in mounts if not m.get("readOnly")] == ["/var/lib/router"]


@every
def test_the_service_account_has_no_token(rendered: Rendered, value_set: str) -> None:
    """The router asks nothing of the cluster, so it gets nothing to ask with."""
    for account in rendered(value_set).all("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    assert not {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"} & {
        o["kind"] for o in rendered(value_set).objects
    }
