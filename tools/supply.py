"""What the image is made of: `python -m tools.supply sbom|licences|audit [--out FILE]`.

`sbom` and `licences` install the lock of the program into an empty environment, as the image's build does, and read
that. `audit` asks for known vulnerabilities of every package of the lock. The libraries that do the work are those of
the dependency group `supply`, in an environment of their own (`make sbom` makes it); this file starts them and judges
what they say.

Exit status: 0 done and nothing found; 1 something was found; 2 there is no answer, because of wrong usage or because
the data cannot be had or does not cover every package. No answer is never "nothing found".
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "run.txt"
_LIMIT_S = 600
# What a licence list says where a package names none.
_UNNAMED = frozenset(("", "UNKNOWN", "None"))


class NoAnswer(Exception):
    """A library did not do its work; the message says why."""


def main(arguments: list[str]) -> int:
    """Do what is asked."""
    parser = argparse.ArgumentParser(prog="python -m tools.supply", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("sbom", "licences", "audit"))
    parser.add_argument("--out", type=Path, help="where the JSON goes (default: dist/WHAT.json)")
    options = parser.parse_args(arguments)
    out: Path = options.out or ROOT / "dist" / f"{options.what}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        return {"sbom": sbom, "licences": licences, "audit": audit}[options.what](out)
    except NoAnswer as exc:
        print(f"supply: {exc}", file=sys.stderr)
        return 2


def sbom(out: Path) -> int:
    """Write a CycloneDX JSON of the installed lock."""
    with tempfile.TemporaryDirectory(prefix="router-supply-") as folder:
        python = installed(Path(folder))
        command = ["cyclonedx_py", "environment", "--pyproject", str(ROOT / "pyproject.toml"), "--output-reproducible"]
        run(["-m", *command, "--of", "JSON", "-o", str(out), str(python)])
    document = json.loads(out.read_text(encoding="utf-8"))
    print(f"{out}: {document['bomFormat']} {document['specVersion']}, {len(document['components'])} packages")
    return 0


def licences(out: Path) -> int:
    """Write and print the licences of the installed lock; 1 where a package names none."""
    with tempfile.TemporaryDirectory(prefix="router-supply-") as folder:
        python = installed(Path(folder))
        said = run(["-m", "piplicenses", "--python", str(python), "--format", "json", "--from", "mixed", "--with-urls"])
    out.write_text(said, encoding="utf-8")
    return judge_licences(json.loads(said))


def judge_licences(packages: list[dict[str, Any]]) -> int:
    """Print a table, and what names no licence."""
    if not packages:
        raise NoAnswer("no package is listed: nothing was installed")
    for package in packages:
        print(f"{package['Name']:<28} {package['Version']:<18} {package['License']}")
    unnamed = [package["Name"] for package in packages if package["License"] in _UNNAMED]
    for name in unnamed:
        print(f"{name}: names no licence; look at its source, and decide")
    return 1 if unnamed else 0


def audit(out: Path) -> int:
    """Look for known vulnerabilities of the lock."""
    command = ["-m", "pip_audit", "--requirement", str(LOCK), "--disable-pip", "--require-hashes"]
    done = started([*command, "--format", "json", "--progress-spinner", "off"])
    if not done.stdout.strip():
        why = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise NoAnswer(f"the data about vulnerabilities cannot be had here: {why[:300]}")
    try:
        report = json.loads(done.stdout)
    except ValueError as exc:
        raise NoAnswer(f"what pip-audit said cannot be read (it ended with {done.returncode})") from exc
    out.write_text(done.stdout, encoding="utf-8")
    status = judge_audit(report)
    if status == 0 and done.returncode != 0:
        raise NoAnswer(f"pip-audit ended with {done.returncode}, and its report names nothing")
    return status


def judge_audit(report: dict[str, Any]) -> int:
    """Print the finds of a report of pip-audit. A package that was skipped is no answer, whatever the others are."""
    packages = report.get("dependencies") if isinstance(report, dict) else None
    if not isinstance(packages, list) or not packages:
        raise NoAnswer("no package was looked at")
    found = [(package, each) for package in packages for each in package.get("vulns", ())]
    for package, each in found:
        fixed = ", ".join(each["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {each['id']}; mended in {fixed}")
    skipped = [package for package in packages if "skip_reason" in package]
    for package in skipped:
        print(f"{package['name']}: {package['skip_reason']}", file=sys.stderr)
    if found:
        return 1
    if skipped:
        raise NoAnswer(f"{len(skipped)} of {len(packages)} packages could not be looked up: that is no answer")
    print(f"{len(packages)} packages, no known vulnerability")
    return 0


def installed(folder: Path) -> Path:
    """An environment that has the lock and nothing else, made as in the Dockerfile → its Python."""
    python = folder / "bin" / "python"
    run(["-m", "venv", "--without-pip", str(folder)])
    run(["-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check", "--require-hashes",
         "--only-binary", ":all:", "-r", str(LOCK)])  # fmt: skip
    return python


def run(arguments: list[str]) -> str:
    """Standard output of `python ARGUMENTS`. Raises NoAnswer where that fails."""
    done = started(arguments)
    if done.returncode != 0:
        said = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise NoAnswer(f"`python {' '.join(arguments[:3])} …` ended with {done.returncode}: {said}")
    return done.stdout


def started(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """A finished `python ARGUMENTS`."""
    try:
        return subprocess.run(  # noqa: S603 - our own Python, with arguments of this file
            [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise NoAnswer(f"`python {' '.join(arguments[:3])} …` took over {_LIMIT_S} s") from exc


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
