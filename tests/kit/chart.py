"""The Helm chart as a cluster would get it: rendered by the real Helm, taken apart.

chart = render(helm, "ha")                   # helm/model-router/ci/ha-values.yaml
chart.one("Deployment"); chart.pods()        # objects; every pod's specification in them
chart.environment(folder)                    # what the router's container would find, as files and variables
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
CHART = ROOT / "helm" / "model-router"
RELEASE, NAMESPACE = "r", "ns"
VALUE_SETS = tuple(sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml")))
_LIMIT_S = 30
# `on`, `yes` and the like are strings to Kubernetes, and so is `=`; libyaml reads a dashboard in a tenth of the time.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def find_helm() -> str | None:
    """The `helm` that `make test` builds, else that of the PATH."""
    built = Path(sys.executable).with_name("helm")
    return str(built) if built.exists() else shutil.which("helm")


@dataclass(frozen=True, slots=True)
class Said:
    """What a run of Helm ended with."""

    status: int
    out: str
    err: str


def run_helm(helm: str, *arguments: str, values: dict[str, Any] | None = None) -> Said:
    """`helm ARGUMENTS`, with `values` on standard input where they are given."""
    given = ["--values", "-"] if values is not None else []
    run = subprocess.run(
        [helm, *arguments, *given], input=json.dumps(values) if values is not None else "",
        capture_output=True, text=True, timeout=_LIMIT_S,
    )  # fmt: skip
    # That the policies are a link to those of the checkout is how it is meant.
    err = "\n".join(line for line in run.stderr.splitlines() if "found symbolic link" not in line)
    return Said(run.returncode, run.stdout, err)


def template(helm: str, *more: str, values: dict[str, Any] | None = None) -> Said:
    """`helm template` of the chart, for the Kubernetes that the schemas are of."""
    return run_helm(
        helm,
        "template",
        RELEASE,
        str(CHART),
        "--namespace",
        NAMESPACE,
        "--kube-version",
        "1.37.0",
        *more,
        values=values,
    )


def render(helm: str, value_set: str) -> Chart:
    """The objects of one of the chart's value sets."""
    said = template(helm, "--values", str(CHART / "ci" / f"{value_set}-values.yaml"))
    assert said.status == 0, said.err
    return Chart(tuple(document for document in yaml.load_all(said.out, _Loader) if document), said.out)


@dataclass(frozen=True, slots=True)
class Chart:
    """The objects that Kubernetes would get, and their text."""

    objects: tuple[dict[str, Any], ...]
    text: str

    def all(self, kind: str) -> list[dict[str, Any]]:
        """Every object of a kind."""
        return [each for each in self.objects if each["kind"] == kind]

    def one(self, kind: str, name: str | None = None) -> dict[str, Any]:
        """The only object of a kind, or the one of that name."""
        (found,) = [each for each in self.all(kind) if name is None or each["metadata"]["name"] == name]
        return found

    def workload(self) -> dict[str, Any]:
        """The Deployment or StatefulSet of the router itself."""
        (found,) = [
            each
            for each in (*self.all("Deployment"), *self.all("StatefulSet"))
            if each["metadata"]["labels"]["app.kubernetes.io/component"] == "router"
        ]
        return found

    def router(self) -> dict[str, Any]:
        """The router's container."""
        found: dict[str, Any]
        (found,) = [c for c in self.workload()["spec"]["template"]["spec"]["containers"] if c["name"] == "router"]
        return found

    def pods(self) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        """(name, metadata, specification) of every pod that an object makes, that of `helm test` among them."""
        for each in self.objects:
            if each["kind"] == "Pod":
                yield each["metadata"]["name"], each["metadata"], each["spec"]
            elif each["kind"] in ("Deployment", "StatefulSet"):
                template = each["spec"]["template"]
                yield each["metadata"]["name"], template["metadata"], template["spec"]

    def environment(self, folder: Path, secrets: dict[tuple[str, str], str] | None = None) -> dict[str, str]:
        """The variables of the router's container; its volumes become folders below `folder`.

        `secrets` gives the content of Secrets that are not the chart's own by (name, key); without one a line of text
        stands for it.
        """
        contents = dict(secrets or {})
        for secret in self.all("Secret"):
            contents |= {(secret["metadata"]["name"], key): value for key, value in secret["stringData"].items()}
        places = {mount["name"]: mount["mountPath"] for mount in self.router()["volumeMounts"]}
        for volume in self.workload()["spec"]["template"]["spec"]["volumes"]:
            place = folder / places.get(volume["name"], "/nowhere").lstrip("/")
            place.mkdir(parents=True, exist_ok=True)
            for source in volume.get("projected", {}).get("sources", ()):
                of = source["secret"]
                for item in of["items"]:
                    said = contents.get((of["name"], item["key"]), _stand_in(item["path"]))
                    (place / item["path"]).write_text(said, encoding="utf-8")
            if (own := volume.get("configMap", {}).get("name")) is not None:
                for config in self.all("ConfigMap"):
                    if config["metadata"]["name"] == own:
                        for name, content in config["data"].items():
                            (place / name).write_text(content, encoding="utf-8")
        (folder / "var/lib/router").mkdir(parents=True, exist_ok=True)
        (settings,) = [c for c in self.all("ConfigMap") if c["metadata"]["name"].endswith("-settings")]
        found: dict[str, str] = dict(settings["data"])
        for variable in self.router().get("env", ()):
            if "value" in variable:
                value = re.sub(r"\$\((\w+)\)", lambda match: found[match[1]], variable["value"])
            else:
                of = variable["valueFrom"]["secretKeyRef"]
                value = contents.get((of["name"], of["key"]), _stand_in(of["key"]))
            found[variable["name"]] = value
        moved = re.compile("/(?=(?:etc|run/secrets|var/lib)/router)")
        return {name: moved.sub(lambda _: f"{folder}/", value) for name, value in found.items()}


def _stand_in(name: str) -> str:
    if "redis" in name or name == "url":
        return "redis://127.0.0.1:6379/0"
    return "a=b" if "otlp" in name else "keys: []\n" if name.endswith(".yaml") else f"secret-of-{name}"
