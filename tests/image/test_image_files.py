"""The image's recipe and what stands beside it: lints, pins, nothing copied that should stay out."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from kit.chart import ROOT, find_helm

from router.settings import SETTINGS, resolve
from tools.start_hooks import main as look_for_hooks
from tools.start_hooks import start_hooks

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def test_hadolint_finds_nothing() -> None:
    """The common slips of Dockerfiles: shell form, unpinned users, `ADD`, lists left behind."""
    hadolint = Path(sys.executable).with_name("hadolint")
    program = str(hadolint) if hadolint.exists() else shutil.which("hadolint")
    if program is None:
        reason = "there is no hadolint: its package has one for Linux on x86-64 only"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    said = subprocess.run([program, str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=30)
    assert (said.returncode, said.stdout) == (0, "")


def test_the_recipe_is_one_that_an_old_buildah_reads() -> None:
    """buildah 1.28 knows no heredoc, no `COPY --link` or `--exclude`, no `--start-interval`."""
    instructions = "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#"))
    for newer in ("<<", "--link", "--exclude", "--start-interval", "# syntax="):
        assert newer not in instructions


def test_both_stages_have_the_base_that_can_be_pinned() -> None:
    """One argument before the first stage, with a version and never `latest`; both stages begin with it."""
    assert re.findall(r"^FROM (.*)$", DOCKERFILE, re.MULTILINE) == ["${BASE} AS build", "${BASE}"]
    (base,) = re.findall(r"^ARG BASE=(.*)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", base)
    assert DOCKERFILE.index("ARG BASE=") < DOCKERFILE.index("FROM ")


def test_only_locked_packages_are_installed() -> None:
    """Each `pip install` of the build checks hashes, but that of our own wheel, which asks no index."""
    commands = re.findall(r"pip --python \S+ install (.*)", DOCKERFILE)
    assert len(commands) == 3
    for command in commands:
        assert "--require-hashes --only-binary :all:" in command or "--no-deps --no-index" in command


@pytest.mark.parametrize("name", ["run", "build", "test", "supply"])
def test_every_line_of_a_lock_has_its_hashes(name: str) -> None:
    """One version each, with at least one SHA-256; no address, no path."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    entries = re.findall(
        r"^([a-z0-9][\w.-]*==[^ \n]+)(?: ; [^\\\n]+)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)",
        text,
        re.MULTILINE,
    )
    starts = re.findall(r"^[^\s#].*", text, re.MULTILINE)
    assert len(entries) == len(starts) > 0
    assert "://" not in text


def test_the_lock_of_the_image_is_part_of_that_of_the_tests() -> None:
    """What is tested is what runs: the same version of every package, in both files."""

    def pins(name: str) -> set[str]:
        text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
        return {line.rstrip(" \\") for line in text.splitlines() if "==" in line and not line.startswith((" ", "#"))}

    assert pins("run") <= pins("test")


def test_the_labels_and_the_chart_name_the_version_of_the_program() -> None:
    """One version, wherever it is written."""
    assert f"ARG VERSION={VERSION}\n" in DOCKERFILE
    chart = yaml.safe_load((ROOT / "helm" / "model-router" / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == VERSION
    for label in ("title", "description", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in DOCKERFILE


def sources() -> list[str]:
    return [
        name for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]
    ]


def test_what_is_copied_is_sent_to_the_build_and_little_else() -> None:
    """Every source of a COPY passes `.dockerignore`; secrets, histories and stores of a working folder do not."""
    kept = [line[1:] for line in IGNORED if line.startswith("!")]
    assert IGNORED[1] == "*"
    for name in sources():
        assert any(name == each or each.startswith(f"{name}/") for each in kept), name
    for stranger in (
        "router.db",
        ".env",
        ".git/config",
        "router-history/1",
        "tests/conftest.py",
        "keys.yaml",
        ".venv/bin/x",
    ):
        assert not any(fnmatch.fnmatch(stranger, each) or stranger.startswith(f"{each}/") for each in kept)


def test_the_settings_of_the_image_are_ones_that_the_router_takes() -> None:
    """Names are settings, the admin listener stays on loopback, and the folder that may be written is the traces'."""
    given = dict(re.findall(r"^    ?(?:ENV )?(ROUTER_\w+)=(\S+?)(?: \\)?$", DOCKERFILE, re.MULTILINE))
    assert {name.removeprefix("ROUTER_").lower() for name in given} <= set(SETTINGS)
    settings = resolve({}, given).settings
    assert (settings.host, settings.admin_host) == ("0.0.0.0", "127.0.0.1")
    assert settings.traces == "sqlite:////var/lib/router/router.db"


def test_the_health_check_asks_where_the_admin_listener_is() -> None:
    """Exec form, without curl or shell; the port is that of the settings."""
    (line,) = re.findall(r"^  CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    command = json.loads(line)
    assert command[:2] == ["python", "-c"]
    compile(command[2], "healthcheck", "exec")
    assert "ROUTER_ADMIN_PORT" in command[2]
    assert "/readyz" in command[2]


def test_the_compose_file_runs_both_with_little_rights() -> None:
    """Read-only, no capability, a limit on memory, time to drain; no secret is written down."""
    router, redis = COMPOSE["services"]["router"], COMPOSE["services"]["redis"]
    for service in (router, redis):
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "mem_limit" in service
    assert all(port.startswith("127.0.0.1:") for port in router["ports"])
    assert int(router["stop_grace_period"].removesuffix("s")) >= 28 + 13
    for name in ("ROUTER_ADMIN_TOKEN", "ROUTER_TENANT_SECRET"):
        assert router["environment"][name].startswith(f"${{{name}:?")
    assert {name.removeprefix("ROUTER_").lower() for name in router["environment"]} <= set(SETTINGS)
    assert resolve({}, router["environment"]).settings.cache == "redis://redis:6379/0"


def test_start_up_hooks_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A `.pth`, a `sitecustomize` in each of its forms: all are named; an environment without them is clean."""
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "innocent.py").write_text("")
    assert look_for_hooks([str(tmp_path)]) == 0
    (packages / "thief.pth").write_text("import os; os.environ")
    (packages / "sitecustomize.py").write_text("")
    (packages / "usercustomize").mkdir()
    (packages / "usercustomize.pyc").write_text("")
    found = ["sitecustomize.py", "thief.pth", "usercustomize", "usercustomize.pyc"]
    assert [path.name for path in start_hooks(tmp_path)] == found
    assert look_for_hooks([str(tmp_path)]) == 1
    assert "thief.pth" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["/nowhere"], ["one", "two"]])
def test_a_folder_without_an_environment_is_no_clean_one(arguments: list[str]) -> None:
    """A slip in the path must not read as `nothing found`."""
    assert look_for_hooks(arguments) == 2


def test_the_helm_of_the_suite_is_locked() -> None:
    """The module that it is built from names its version, and the hash of everything in it."""
    (tool,) = re.findall(r"^tool (\S+)$", (ROOT / "tools" / "helm" / "go.mod").read_text(), re.MULTILINE)
    assert tool == "helm.sh/helm/v4/cmd/helm"
    sums = (ROOT / "tools" / "helm" / "go.sum").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("helm.sh/helm/v4 v4.") for line in sums)
    assert all(re.fullmatch(r"\S+ v\S+ h1:[A-Za-z0-9+/]{43}=", line) for line in sums)
    assert find_helm() is None or os.access(str(find_helm()), os.X_OK)
