"""Writes `helm/model-router/values.schema.json`: `python -m tools.chart_schema [--check]`.

Descriptions are the `# --` comments of values.yaml, bounds are the table below, and the settings are those of
`router/settings.py` with their bounds there: what the router learns, the chart takes after one run of this. A value
that has no row in the table, or a row without a value, is an error. With `--check` nothing is written, and the exit
status is 1 where the file is not what would be written.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

from router import settings as router_settings
from router.settings import SECRETS, SETTINGS, Settings

CHART = Path(__file__).parent.parent / "helm" / "model-router"

# Settings that the chart makes from other values.
OWN = frozenset(
    (*SECRETS, "host", "port", "admin_host", "admin_port", "upstream_url", "upstream_private", "keys", "policies")
) | {"policy_history", "cache", "affinity", "jobs", "deferred", "fleet", "traces", "drain_timeout", "drain_delay"}

_DURATION = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)$"
_DURATIONS = frozenset(("worker_timeout", "keep_alive", "capture_keep"))
_DURATIONS_OR_OFF = frozenset(("traces_keep", "models_refresh"))
# What the templates can compare with `traces_max_mb`; Kubernetes knows more ways to write a size.
_SIZE = r"^[1-9][0-9]{0,8}(Mi|Gi|Ti)$"
_NAME = r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)?$"


def text(**more: Any) -> dict[str, Any]:
    """A string."""
    return {"type": "string", **more}


def number(low: int, high: int) -> dict[str, Any]:
    """A whole number."""
    return {"type": "integer", "minimum": low, "maximum": high}


NAME = text(pattern=_NAME)
# A secret as a header carries it: no line break, no space, or it would never be matched. Said with `not`, because what
# does not match a `pattern` is printed.
LINE = text(**{"not": {"pattern": "[^!-~]"}})
KEY = text(pattern=r"^[A-Za-z0-9._-]+$")
FLAG = {"type": "boolean"}
# No `USER:PASSWORD@`: that URL would stand in the pod's specification. With `not`, so that it is not printed.
REDIS_URL = text(pattern=r"^(rediss?(\+sentinel|\+cluster)?://[^\s?]+|.*@.*)?$", **{"not": {"pattern": "@"}})
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
NAMES = {"type": "array", "items": text(minLength=1)}
KUBERNETES = {"type": "object", "additionalProperties": True}
KUBERNETES_LIST = {"type": "array", "items": KUBERNETES}
ID = {"type": ["integer", "null"], "minimum": 1}
PORT = number(1, 65535)
SIZE = text(pattern=_SIZE)
PORTS = {"type": "array", "items": PORT}
_AMOUNTS = {"type": "object", "additionalProperties": {"type": ["string", "integer", "number"]}}
RESOURCES = {
    "type": "object",
    "additionalProperties": False,
    "required": ["limits"],
    "properties": {
        "requests": {**_AMOUNTS, "description": "What a node must have free"},
        "limits": {
            "type": "object",
            "description": "What a container may use; memory is required, or one pod could take a node's",
            "additionalProperties": {"type": ["string", "integer", "number"]},
            "required": ["memory"],
        },
    },
}

# Path in values.yaml → what is taken there.
TYPES: dict[str, dict[str, Any]] = {
    "nameOverride": NAME,
    "fullnameOverride": NAME,
    "commonLabels": STRINGS,
    "image.repository": text(minLength=1, pattern=r"^[a-z0-9][A-Za-z0-9._/:-]*$"),
    "image.tag": text(pattern=r"^([A-Za-z0-9_][A-Za-z0-9._-]{0,127})?$"),
    "image.digest": text(pattern=r"^(sha256:[0-9a-f]{64})?$"),
    "image.pullPolicy": text(enum=["Always", "IfNotPresent", "Never"]),
    "imagePullSecrets": KUBERNETES_LIST,
    "replicaCount": number(1, 1000),
    "upstream.url": text(pattern=r"^(https?://[^/?#\s]+/?|.*@.*)$", **{"not": {"pattern": "@"}}),
    "upstream.private": text(enum=["refuse", "allow"]),
    "upstream.apiKey": LINE,
    "upstream.existingSecret": NAME,
    "upstream.existingSecretKey": KEY,
    "clientKeys.file": text(),
    "clientKeys.existingSecret": NAME,
    "clientKeys.existingSecretKey": KEY,
    "admin.token": LINE,
    "admin.existingSecret": NAME,
    "admin.existingSecretKey": KEY,
    "admin.service.enabled": FLAG,
    "admin.service.annotations": STRINGS,
    "tenantSecret.value": LINE,
    "tenantSecret.existingSecret": NAME,
    "tenantSecret.existingSecretKey": KEY,
    "webhookSecret.value": LINE,
    "webhookSecret.existingSecret": NAME,
    "webhookSecret.existingSecretKey": KEY,
    "policies.existingConfigMap": NAME,
    "policies.files": {
        "type": "object",
        "patternProperties": {r"^[A-Za-z0-9][A-Za-z0-9_-]*\.yaml$": {"type": "string"}},
        "additionalProperties": False,
    },
    "redis.url": REDIS_URL,
    "redis.existingSecret": NAME,
    "redis.existingSecretKey": KEY,
    "redis.nearMb": number(1, 65536),
    "redis.cache": FLAG,
    "redis.affinity": FLAG,
    "redis.jobs": FLAG,
    "redis.fleet": FLAG,
    "jobsRedis.url": REDIS_URL,
    "jobsRedis.existingSecret": NAME,
    "jobsRedis.existingSecretKey": KEY,
    "bundledRedis.enabled": FLAG,
    "bundledRedis.image": text(minLength=1),
    "bundledRedis.maxMb": number(16, 65536),
    "bundledRedis.resources": RESOURCES,
    "traces.storage": text(enum=["emptyDir", "volume", "off"]),
    "traces.size": SIZE,
    "traces.storageClass": NAME,
    "traces.annotations": STRINGS,
    "otel.endpoint": text(pattern=r"^(https?://[^\s]+|.*@.*)?$", **{"not": {"pattern": "@"}}),
    "otel.headersSecret": NAME,
    "otel.headersSecretKey": KEY,
    "otel.resourceAttributes": text(pattern=r"^([^=,\s]+=[^,]*(,[^=,\s]+=[^,]*)*)?$"),
    "drain.preStopSeconds": number(0, 600),
    "drain.seconds": number(5, 86400),
    "rollOnChange": FLAG,
    "autoscaling.enabled": FLAG,
    "autoscaling.minReplicas": number(1, 1000),
    "autoscaling.maxReplicas": number(1, 1000),
    "autoscaling.targetCPU": number(0, 100),
    "autoscaling.targetStreams": number(0, 100000),
    "autoscaling.scaleDownSeconds": number(0, 3600),
    "podDisruptionBudget.enabled": FLAG,
    "podDisruptionBudget.maxUnavailable": {
        "type": ["integer", "string"],
        "minimum": 1,
        "pattern": "^[1-9][0-9]?%$",
    },
    "resources": RESOURCES,
    "podSecurityContext.fsGroup": ID,
    "podSecurityContext.runAsUser": ID,
    "podSecurityContext.runAsGroup": ID,
    "serviceAccount.create": FLAG,
    "serviceAccount.name": NAME,
    "serviceAccount.annotations": STRINGS,
    "service.type": text(enum=["ClusterIP", "NodePort", "LoadBalancer"]),
    "service.port": PORT,
    "service.annotations": STRINGS,
    "ingress.enabled": FLAG,
    "ingress.className": NAME,
    "ingress.controller": text(enum=["nginx", "other"]),
    "ingress.annotations": STRINGS,
    "ingress.hosts": NAMES,
    "ingress.tls": KUBERNETES_LIST,
    "httpRoute.enabled": FLAG,
    "httpRoute.parentRefs": KUBERNETES_LIST,
    "httpRoute.hostnames": NAMES,
    "httpRoute.annotations": STRINGS,
    "httpRoute.requestTimeout": text(pattern=r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"),
    "networkPolicy.enabled": FLAG,
    "networkPolicy.apiFrom": KUBERNETES_LIST,
    "networkPolicy.adminFrom": KUBERNETES_LIST,
    "networkPolicy.dnsTo": KUBERNETES_LIST,
    "networkPolicy.dnsPorts": {**PORTS, "minItems": 1},
    "networkPolicy.upstreamTo": KUBERNETES_LIST,
    "networkPolicy.upstreamPorts": PORTS,
    "networkPolicy.redisTo": KUBERNETES_LIST,
    "networkPolicy.redisPorts": PORTS,
    "networkPolicy.otlpTo": KUBERNETES_LIST,
    "networkPolicy.otlpPorts": PORTS,
    "networkPolicy.extraEgress": KUBERNETES_LIST,
    "metrics.serviceMonitor.enabled": FLAG,
    "metrics.serviceMonitor.interval": text(pattern=r"^[0-9]+(ms|s|m)$"),
    "metrics.serviceMonitor.labels": STRINGS,
    "metrics.prometheusRule.enabled": FLAG,
    "metrics.prometheusRule.labels": STRINGS,
    "metrics.prometheusRule.runbookUrl": text(minLength=1),
    "metrics.prometheusRule.alertLabels": STRINGS,
    "metrics.dashboard.enabled": FLAG,
    "metrics.dashboard.labels": STRINGS,
    "probes.periodSeconds": number(1, 60),
    "probes.timeoutSeconds": number(1, 60),
    "probes.livenessFailures": number(1, 100),
    "probes.readinessFailures": number(1, 100),
    "probes.startupFailures": number(1, 1000),
    "spread": FLAG,
    "topologySpreadConstraints": KUBERNETES_LIST,
    "affinity": KUBERNETES,
    "nodeSelector": STRINGS,
    "tolerations": KUBERNETES_LIST,
    "priorityClassName": NAME,
    "runtimeClassName": NAME,
    "podAnnotations": STRINGS,
    "podLabels": STRINGS,
    "extraEnv": KUBERNETES_LIST,
    "extraEnvFrom": KUBERNETES_LIST,
    "extraVolumes": KUBERNETES_LIST,
    "extraVolumeMounts": KUBERNETES_LIST,
    "extraContainers": KUBERNETES_LIST,
    "tests.enabled": FLAG,
}


def setting_types() -> dict[str, Any]:
    """The router's settings, but for those that the chart makes itself."""
    properties = {}
    for name, meaning in SETTINGS.items():
        if name in OWN:
            continue
        if name in router_settings._NUMBERS:
            kind = number(*router_settings._NUMBERS[name])
        elif name in router_settings._CHOICES:
            kind = text(enum=list(router_settings._CHOICES[name]))
        elif name in _DURATIONS:
            kind = text(pattern=_DURATION)
        elif name in _DURATIONS_OR_OFF:
            kind = text(pattern=_DURATION.replace("^", "^(off|").replace("$", ")$"))
        else:
            kind = text(minLength=1, pattern=r"^[^\n]*$")
        default = Settings.__dataclass_fields__[name].default
        shown = f" (default: {default})" if default is not None else ""
        properties[name] = {**kind, "description": meaning.replace("`", "") + shown}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def comments(values: str) -> dict[str, str]:
    """Path of each value that has a `# --` comment → the comment."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    said: str | None = None
    for line in values.splitlines():
        if (comment := re.match(r" *# -- (.*)", line)) is not None:
            said = comment[1]
        elif (key := re.match(r"( *)([A-Za-z]\w*):", line)) is not None:
            indent = len(key[1])
            path = [(depth, name) for depth, name in path if depth < indent] + [(indent, key[2])]
            if said is not None:
                found[".".join(name for _, name in path)] = said
                said = None
    return found


def schema() -> dict[str, Any]:
    """The whole schema. Raises SystemExit where values.yaml and the table do not name the same values."""
    said = comments((CHART / "values.yaml").read_text(encoding="utf-8"))
    types = {**TYPES, "settings": setting_types()}
    if unlike := set(said) ^ set(types):
        raise SystemExit(f"values.yaml (`# --`) and the table of tools/chart_schema.py differ: {sorted(unlike)}")
    root: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Values of the chart model-router",
        "type": "object",
        "additionalProperties": False,
        "properties": {"global": {**KUBERNETES, "description": "Values of a parent chart; none of them is read"}},
    }
    for path, meaning in said.items():
        *above, name = path.split(".")
        node = root
        for part in above:
            node = node["properties"].setdefault(
                part,
                {
                    "type": "object",
                    "description": f"Values of `{part}`",
                    "additionalProperties": False,
                    "properties": {},
                },
            )
        node["properties"][name] = {**types[path], "description": meaning}
    return root


def rendered() -> str:
    """The text of the file."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Write the file, or with `--check` compare it."""
    file = CHART / "values.schema.json"
    if arguments == ["--check"]:
        is_same = file.exists() and file.read_text(encoding="utf-8") == rendered()
        if not is_same:
            print(f"{file}: is not what `python -m tools.chart_schema` writes: run it", file=sys.stderr)
        return 0 if is_same else 1
    if arguments:
        print("chart_schema: takes nothing but `--check`", file=sys.stderr)
        return 2
    file.write_text(rendered(), encoding="utf-8")
    print(file)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
