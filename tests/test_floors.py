"""The house keeps its floors: imports only go down, and the lower floors touch nothing outside."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "router"

# Module (or folder) → floor. West (adapters) and east (the flow) share floor 4 and never import each other.
FLOORS: dict[str, str] = {
    "errors": "0", "value": "0",
    "wire": "1", "usage": "1", "catalog": "1",
    "facts": "2", "swap": "2", "classify": "2", "trace.record": "2", "trace.export": "2",
    "trace.filters": "2", "trace.rows": "2", "trace.semconv": "2", "trace.spans": "2",
    "trace.fleet_row": "2", "trace.context": "2", "trace.captured": "2", "trace.asking": "2", "trace.frames": "2",
    "seams": "3", "cache.key": "3", "cache.entry": "3", "cache.desk": "3", "affinity": "3", "affinity.memory": "4 west",
    "affinity.redis": "4 west",
    "redis_link": "4 west", "redis_url": "4 west", "redis_failure": "4 west", "redis_dial": "4 west",
    "redis_node": "4 west", "redis_cluster": "4 west", "policy.history": "4 west", "policy.folder": "4 west",
    "policy.format": "4 west",
    "keys": "3", "policy": "3", "trace.schema": "4 west",
    "policy.store": "4 west", "policy.push_store": "4 west", "policy.push_follower": "4 west",
    "fleet": "6", "upstream": "4 west", "cache": "4 west", "trace": "4 west", "jobs": "4 west",
    "jobs.decision": "3", "jobs.deferred": "3",
    "serve": "4 east",
    "web": "5",
    "settings": "6", "otel": "6", "app": "6", "stores": "6", "sources": "6", "doorkeeper": "6", "capture_file": "6",
    "catalog_file": "6", "overload": "6", "log": "6", "cgroup": "6", "urls": "6", "cli": "6",
    "deferring": "6", "fleet_traces": "6", "supervisor": "6", "control": "6", "worker_process": "6",
    "simulator": "apart",
}  # fmt: skip

# Who may import what from outside, beside the standard library.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "yaml": ("policy.source", "catalog_file", "simulator"),
    "re2": ("policy.compile", "trace.capture_redact"),
    "zstandard": ("cache.codec",),
    "orjson": ("wire", "cache", "serve", "trace", "simulator", "upstream", "web", "jobs"),
    "httptools": ("upstream",),
    "starlette": (
        "web.admin",
        "web.gate",
        "web.cache",
        "web.answer",
        "web.ask",
        "web.traces",
        "web.fleet",
        "web.status",
        "web.turns",
        "web.page",
        "app",
        "simulator",
    ),
    "anyio": ("web.admin", "web.traces", "web.status", "simulator"),
    "uvicorn": ("cli", "simulator"),
    "uvloop": ("cli", "simulator"),
    "anthropic": ("cli",),
    "click": ("cli",),
    "prometheus_client": ("trace.metrics", "trace.genai_metrics", "trace.series"),
    "google": ("trace.otlp_encode",),
    "opentelemetry": ("trace.otlp_encode",),
    "watchfiles": ("policy.store",),
    "redis": ("redis_link", "redis_failure", "redis_dial", "redis_node", "redis_cluster"),
    "hiredis": ("redis_dial",),
    "ruamel": ("policy.format",),
}

# Floors 0 to 3 have no clock, no socket, no file, no event loop, no environment.
OUTSIDE = {
    "asyncio",
    "socket",
    "os",
    "io",
    "pathlib",
    "time",
    "datetime",
    "threading",
    "subprocess",
    "sqlite3",
    "logging",
}


def modules() -> list[tuple[str, Path]]:
    return [
        (".".join(path.relative_to(PACKAGE).with_suffix("").parts), path)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__init__.py"
    ]


def floor_of(module: str) -> str:
    """The floor of the longest name in FLOORS that `module` is, or is inside."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        floor = FLOORS.get(".".join(parts[:length]))
        if floor is not None:
            return floor
    raise AssertionError(f"`{module}` has no floor: add it to FLOORS")


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append(node.module or "")
    return found


def level(floor: str) -> int:
    return 9 if floor == "apart" else int(floor[0])


@pytest.mark.parametrize(("module", "path"), modules(), ids=[name for name, _ in modules()])
def test_imports_only_go_down(module: str, path: Path) -> None:
    """A module imports from its own floor or below; the wings and the simulator keep apart."""
    floor = floor_of(module)
    for name in imports(path):
        if not name.startswith("router."):
            continue
        other = floor_of(name.removeprefix("router."))
        if floor == "apart":
            allowed = other == "apart" or name.startswith(("router.errors", "router.wire", "router.catalog"))
        elif other == "apart":
            allowed = module.startswith("cli.")
        else:
            allowed = level(other) <= level(floor) and {floor, other} != {"4 west", "4 east"}
        assert allowed, f"router.{module} (floor {floor}) imports {name} (floor {other})"


@pytest.mark.parametrize(("module", "path"), modules(), ids=[name for name, _ in modules()])
def test_the_lower_floors_touch_nothing_outside(module: str, path: Path) -> None:
    """Floors 0 to 3 are pure: what they need of the world, they are given."""
    if floor_of(module) not in ("0", "1", "2", "3"):
        return
    touched = {name.split(".")[0] for name in imports(path)} & OUTSIDE
    assert not touched, f"router.{module} imports {sorted(touched)}"


@pytest.mark.parametrize(("module", "path"), modules(), ids=[name for name, _ in modules()])
def test_each_library_is_known_to_few_rooms(module: str, path: Path) -> None:
    """Swapping a library touches one room."""
    for name in imports(path):
        importers = LIBRARIES.get(name.split(".")[0])
        if importers is not None:
            assert any(module == room or module.startswith(room + ".") for room in importers), (
                f"{module} imports {name}"
            )


@pytest.mark.parametrize(("module", "path"), modules(), ids=[name for name, _ in modules()])
def test_rooms_are_small(module: str, path: Path) -> None:
    """No module has 400 lines or more."""
    assert len(path.read_text(encoding="utf-8").splitlines()) < 400


@pytest.mark.parametrize(("module", "path"), modules(), ids=[name for name, _ in modules()])
def test_every_public_name_says_what_it_is(module: str, path: Path) -> None:
    """Modules, public classes, their public methods and public functions; a Protocol's and an override's lean on it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"router.{module} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"router.{module}.{node.name} has no docstring"
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not node.bases:
            for method in node.body:
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and not method.name.startswith("_"):
                    assert ast.get_docstring(method), f"router.{module}.{node.name}.{method.name} has no docstring"
