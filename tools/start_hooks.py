"""Start-up hooks in an installed environment: `python -m tools.start_hooks PREFIX`.

Python runs code before any program begins where `site-packages` holds a `.pth` file with a line that starts with
`import`, or a module `sitecustomize` or `usercustomize`. A package that was tampered with needs no more than that to
read every secret of a process. None of our packages needs one, so any such file is refused, also a harmless one: a
`.pth` that only adds a folder today may import tomorrow.

It imports nothing but the standard library and runs in the image's build. Exit status: 0 none, 1 some, 2 wrong usage.
"""

from __future__ import annotations

import sys
from pathlib import Path

NAMES = ("sitecustomize", "usercustomize")


def start_hooks(prefix: Path) -> list[Path]:
    """Files below `prefix` that Python would run, or may run, at every start; sorted."""
    found = set(prefix.rglob("*.pth"))
    for name in NAMES:  # in whatever form it may be imported: source, compiled without it, an extension, a folder
        found |= {path for path in prefix.rglob(f"{name}*") if path.name.partition(".")[0] == name}
    return sorted(found)


def main(arguments: list[str]) -> int:
    """Print what was found, one file a line."""
    prefix = Path(arguments[0]) if len(arguments) == 1 else None
    if prefix is None or not any(prefix.rglob("site-packages")):
        print("start_hooks: give one folder that holds an environment (with a `site-packages`)", file=sys.stderr)
        return 2
    found = start_hooks(prefix)
    for path in found:
        print(f"{path}: runs, or may run, at every start of Python")
    print(f"{prefix}: {len(found)} start-up hooks")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
