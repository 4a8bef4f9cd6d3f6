"""The image, built and run for real: `python -m bench.image [--base IMAGE] [--wheels FOLDER] [--json]`.

buildah builds the Dockerfile, without a daemon and without a network inside the build: the locked wheels are fetched
first and mounted. The base is made of Debian packages by mmdebstrap, unless `--base` names an image that is there.
The result runs as in a cluster, under an OCI runtime: user 10001, root file system read-only, no capability, no new
rights, one writable folder. A streamed request goes through it to a simulator. What is wrong is printed, and the exit
status is then 1; 2 where a program is missing.

Needs root, `buildah` 1.28 or later, `runc`, and for the base `mmdebstrap`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from kit.live import program

from tools.start_hooks import start_hooks

ROOT = Path(__file__).resolve().parent.parent
IMAGE, BASE = "localhost/model-router:bench", "localhost/model-router-base:bench"
BUILDAH = {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}
DEBIAN = "bookworm"
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
NOT_IN_IT = ("gcc", "cc", "g++", "make", "pip", "pip3", "curl")
START_S = 30.0


def main() -> int:
    """Build, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", help="an image that is there, in place of one made of Debian packages")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to use and fill (default: a temporary one)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    needed = ["buildah", "runc", *([] if options.base else ["mmdebstrap"])]
    missing = [name for name in needed if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        print(f"image: needs root and {', '.join(needed)}; missing: {', '.join(missing) or 'root'}", file=sys.stderr)
        return 2
    figures: dict[str, Any] = {}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="router-image-") as name:
        folder = Path(name)
        base = options.base or timed(figures, "base_s", lambda: make_base(folder))
        wheels = options.wheels or folder / "wheels"
        timed(figures, "wheels_s", lambda: fetch_wheels(folder, wheels))
        timed(figures, "build_s", lambda: build(base, wheels))
        figures |= sizes(base, folder)
        with mounted() as root:
            wrong += look_at(root)
            run_it(root, folder, figures, wrong)
    if options.json:
        print(json.dumps({"figures": figures, "wrong": wrong}, indent=2))
    else:
        for figure, value in figures.items():
            print(f"{figure:<26} {value}")
        for line in wrong:
            print(f"WRONG: {line}")
        print(f"{len(wrong)} things wrong" if wrong else "nothing wrong")
    return 1 if wrong else 0


def timed(figures: dict[str, Any], figure: str, work: Callable[[], Any]) -> Any:
    """Do it, and note the seconds it took."""
    began = time.monotonic()
    result = work()
    figures[figure] = round(time.monotonic() - began, 1)
    return result


def say(*command: str) -> str:
    """Standard output of a command; CalledProcessError, with what it said, where it fails."""
    done = subprocess.run(command, cwd=ROOT, env=os.environ | BUILDAH, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-3000:], file=sys.stderr)
        done.check_returncode()
    return done.stdout.strip()


def make_base(folder: Path) -> str:
    """An image of Debian with Python, in the place of the official one."""
    tar = folder / "base.tar"
    say("mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", DEBIAN, str(tar))
    container = say("buildah", "from", "scratch")
    say("buildah", "add", "--quiet", container, str(tar), "/")
    say("buildah", "commit", "--quiet", container, BASE)
    say("buildah", "rm", container)
    tar.unlink()
    return BASE


def fetch_wheels(folder: Path, wheels: Path) -> None:
    """The locked wheels, for every Python from 3.11.0 on: what a marker leaves out here, the base may need."""
    wheels.mkdir(parents=True, exist_ok=True)
    for name in ("run", "build"):
        lock = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
        every = re.sub(r" ; python_full_version < '[\d.]+'(?= \\$)", "", lock, flags=re.MULTILINE)
        (folder / f"{name}.txt").write_text(every, encoding="utf-8")
        say(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--require-hashes",
            "--no-deps", "--only-binary", ":all:", "--dest", str(wheels),
            "--requirement", str(folder / f"{name}.txt"))  # fmt: skip


def build(base: str, wheels: Path) -> None:
    """The Dockerfile of the checkout."""
    # The OCI format has no health check; Docker's has.
    say("buildah", "bud", "--format", "docker", "--pull=never", "--no-cache",
        "--volume", f"{wheels.resolve()}:/wheels:ro",
        "--build-arg", f"BASE={base}", "--build-arg", "PIP_NO_INDEX=1", "--build-arg", "PIP_FIND_LINKS=/wheels",
        "--tag", IMAGE, ".")  # fmt: skip


def sizes(base: str, folder: Path) -> dict[str, Any]:
    """Megabytes of the archives of image and base, as a registry would hold them."""
    found = {}
    for figure, image in (("image_archive_mb", IMAGE), ("base_archive_mb", base)):
        archive = folder / "image.tar"
        say("buildah", "push", "--quiet", image, f"oci-archive:{archive}")
        found[figure] = round(archive.stat().st_size / 1e6, 1)
        archive.unlink()
    return found


@contextlib.contextmanager
def mounted() -> Iterator[Path]:
    """The image's file system."""
    container = say("buildah", "from", "--pull=never", IMAGE)
    try:
        yield Path(say("buildah", "mount", container))
    finally:
        say("buildah", "rm", container)


def look_at(root: Path) -> list[str]:
    """What the image should not have."""
    wrong = [f"start-up hook {path}" for path in start_hooks(root)]
    for name in NOT_IN_IT:
        wrong += [f"{path} is there" for path in root.glob(f"*/bin/{name}")] + [
            f"{path} is there" for path in root.glob(f"*/*/bin/{name}")
        ]
    wrong += [f"{path} is there" for path in root.rglob("pip/__main__.py")]
    for folder, _, files in os.walk(root):
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink() and path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID):
                wrong.append(f"{path} has a set-user-id bit")
    config = json.loads(say("buildah", "inspect", "--type", "image", IMAGE))["OCIv1"]["config"]
    expected = {"User": "10001:10001", "Entrypoint": ["router"], "Cmd": ["serve"], "StopSignal": "SIGTERM"}
    wrong += [f"{key} is {config.get(key)}" for key, value in expected.items() if config.get(key) != value]
    return wrong


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_it(root: Path, folder: Path, figures: dict[str, Any], wrong: list[str]) -> None:
    """Run the image as a cluster would, and use it."""
    bundle = folder / "bundle"
    bundle.mkdir()
    say("runc", "spec", "--bundle", str(bundle))
    port, admin = free_port(), free_port()
    config = json.loads(say("buildah", "inspect", "--type", "image", IMAGE))["OCIv1"]["config"]
    healthcheck = json.loads(say("buildah", "inspect", "--type", "image", IMAGE))["Docker"]["config"].get("Healthcheck")
    name = f"router-image-{os.getpid()}"
    with program("simulate", "--latency", "none", "--port", "0") as addresses:
        environment = [*config["Env"], f"ROUTER_PORT={port}", f"ROUTER_ADMIN_PORT={admin}",
                       f"ROUTER_UPSTREAM_URL={next(iter(addresses.values()))}"]  # fmt: skip
        write_bundle(bundle, root, environment, [*config["Entrypoint"], *config["Cmd"]])
        said = (folder / "said.txt").open("w+")
        began = time.monotonic()
        running = subprocess.Popen(["runc", "run", "--bundle", str(bundle), name], stdout=said, stderr=said)
        try:
            wait_ready(admin, running)
            figures["start_s"] = round(time.monotonic() - began, 2)
            script = ROOT / "helm" / "model-router" / "files" / "helm_test.py"
            api = f"http://127.0.0.1:{port}"
            told = subprocess.run([sys.executable, str(script), api, api], capture_output=True, text=True, check=False)
            figures["streamed"] = told.stdout.strip().splitlines()[0] if told.stdout else ""
            if told.returncode:
                wrong.append(f"the streamed request: {told.stderr.strip()}")
            wrong += look_inside(name, healthcheck)
            figures["memory_mb"] = memory_mb(name)
        except (OSError, TimeoutError) as exc:
            wrong.append(f"it did not serve: {exc}")
        finally:
            began = time.monotonic()
            with contextlib.suppress(subprocess.CalledProcessError):
                say("runc", "kill", name, "TERM")
            status = running.wait(timeout=60)
            figures["stop_s"] = round(time.monotonic() - began, 2)
            said.seek(0)
            text = said.read()
            said.close()
            if status or "Traceback" in text:
                wrong.append(f"ended with status {status}: {text[-1500:]}")


def write_bundle(bundle: Path, root: Path, environment: list[str], arguments: list[str]) -> None:
    """The runtime's configuration: what the chart's security context asks for, on the network of this machine."""
    config = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    config["root"] = {"path": str(root), "readonly": True}
    config["process"] |= {
        "terminal": False,
        "user": {"uid": 10001, "gid": 10001},
        "args": arguments,
        "env": environment,
        "cwd": "/var/lib/router",
        "noNewPrivileges": True,
        "capabilities": {},
    }
    kinds = config["linux"]["namespaces"]
    config["linux"]["namespaces"] = [kind for kind in kinds if kind["type"] not in ("network", "cgroup")]
    config["mounts"] = [mount for mount in config["mounts"] if mount["type"] not in ("cgroup", "sysfs")]
    options = ["nosuid", "nodev", "noexec", "mode=0700", "uid=10001", "gid=10001", "size=256m"]
    config["mounts"].append({"destination": "/var/lib/router", "type": "tmpfs", "source": "tmpfs", "options": options})
    (bundle / "config.json").write_text(json.dumps(config), encoding="utf-8")


def wait_ready(admin: int, running: subprocess.Popen[bytes]) -> None:
    """Until `/readyz` says so; TimeoutError after START_S, or when the process has ended."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and running.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{admin}/readyz", timeout=1) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.02)
    raise TimeoutError("not ready in time")


def look_inside(name: str, healthcheck: dict[str, Any] | None) -> list[str]:
    """What a process in the container may and may not do."""
    wrong = []

    def ends(*command: str) -> int:
        return subprocess.run(["runc", "exec", name, *command], capture_output=True, check=False).returncode

    if healthcheck is None or ends(*healthcheck["Test"][1:]) != 0:
        wrong.append("the health check of the image does not pass")
    python = ("python", "-c")
    if ends(*python, "open('/etc/written', 'w')") == 0:
        wrong.append("the root file system can be written")
    if ends(*python, "open('/var/lib/router/written', 'w')") != 0:
        wrong.append("the folder of the traces cannot be written")
    if ends(*python, "import os, sys; sys.exit(os.getuid() != 10001 or os.getgid() != 10001)") != 0:
        wrong.append("it does not run as 10001:10001")
    if ends(*python, "import pip") == 0 or ends("python3", "-m", "pip", "--version") == 0:
        wrong.append("there is a pip")
    if ends(*python, "import os, sys; sys.exit(not os.path.getsize('/var/lib/router/router.db'))") != 0:
        wrong.append("no trace was written")
    return wrong


def memory_mb(name: str) -> float:
    """Resident memory of the router's process after its first requests."""
    pid = json.loads(say("runc", "state", name))["pid"]
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return round(int(found[1]) / 1000, 1) if found else 0.0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise SystemExit(main())
