"""What the documentation says is what the program does: commands, settings, codes, facts, headers, metrics, links."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
import shlex
import socket
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from kit.redis_server import RedisServer
from kit.shared_store import be_patient
from kit.stage import always, stage
from test_floors import floor_of

from router import errors
from router.cache import key, shared
from router.cli.main import cli
from router.facts.vocabulary import FACTS
from router.settings import SETTINGS, Settings
from router.trace.metrics import MetricsSink
from router.trace.record import BYPASSES, UNSTORED, Trace, TraceQuery

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "router"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = ROOT / "README.md"

# Commands of `console` blocks that need neither a server nor a trace store: these are run.
ALONE = (
    "router --version",
    "router models",
    "router config show",
    "router policy check",
    "router policy test",
    "router policy facts",
    "router policy schema",
)


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def everything() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in PAGES)


def table(text: str, first_column: str) -> list[list[str]]:
    """The cells of the table whose first column is called so, without its head."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(f"| {first_column} |"):
            next(lines)
            break
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    assert rows, f"no table with the column `{first_column}`"
    return rows


def leaf_commands(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group, info_name=name)
    for child in group.list_commands(context):
        command = group.get_command(context, child)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaf_commands(command, f"{name} {child}")
        else:
            yield f"{name} {child}", command


COMMANDS = dict(leaf_commands(cli, "router"))


def fenced(text: str, language: str) -> Iterator[str]:
    for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield match.group(1)


def console_lines() -> list[str]:
    """Every `$ router …` line of a `console` block."""
    found = []
    for path in PAGES:
        for block in fenced(path.read_text(encoding="utf-8"), "console"):
            found += [line[2:].strip() for line in block.splitlines() if line.startswith("$ router")]
    return sorted(set(found))


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", without_fences(text))


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_fences(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_documented(command: str) -> None:
    """Whatever the command line offers, README or a page of docs/ names."""
    assert f"{command}`" in everything() or f"{command} " in everything() or f"{command}\n" in everything()


@pytest.mark.parametrize("line", console_lines())
def test_each_documented_command_line_is_one_that_the_program_takes(line: str) -> None:
    """A command line in a console block names a command that exists, with options that it has."""
    words = shlex.split(line)
    if words[1].startswith("-"):
        options = {option for parameter in cli.params for option in parameter.opts}
        assert words[1] in options
        return
    command = next(
        (COMMANDS[" ".join(words[:length])] for length in (3, 2) if " ".join(words[:length]) in COMMANDS), None
    )
    assert command is not None, f"there is no command `{line}`"
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]
    assert not unknown


@pytest.mark.parametrize("line", [line for line in console_lines() if line.startswith(ALONE)])
def test_documented_command_lines_run(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pages tell a reader to type in a checkout ends with status 0."""
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(cli, shlex.split(line)[1:])
    assert result.exit_code == 0, result.output
    assert result.output.strip()


def test_the_settings_table_is_the_code() -> None:
    """Names, defaults, meanings and their order come from router/settings.py."""
    defaults = {field.name: field.default for field in fields(Settings)}
    expected = [
        [f"`{name}`", "none" if defaults[name] is None else f"`{defaults[name]}`", meaning]
        for name, meaning in SETTINGS.items()
    ]
    assert table(page("docs/settings.md"), "setting") == expected
    assert set(defaults) == set(SETTINGS)


def test_the_flags_of_serve_are_documented() -> None:
    """Each flag of `router serve` is on the settings page."""
    text = page("docs/settings.md")
    for parameter in COMMANDS["router serve"].params:
        assert any(f"`{option}" in text for option in parameter.opts), parameter.opts


def test_the_error_table_is_the_code() -> None:
    """Codes, statuses, types, owners, names and meanings come from router/errors.py."""
    family = [
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, errors.RouterError) and value is not errors.RouterError
    ]
    expected = [
        [
            error.code,
            str(error.status),
            f"`{error.wire_type}`",
            error.source,
            f"`{error.__name__}`",
            " ".join((inspect.getdoc(error) or "").split()),
        ]
        for error in sorted(family, key=lambda error: error.code)
    ]
    assert table(page("docs/errors.md"), "code") == expected
    assert len({error.code for error in family}) == len(family)


def test_each_fact_is_documented() -> None:
    """The words that a condition may use are explained where the language is."""
    text = page("docs/policies.md")
    assert [fact for fact in (*FACTS, "header.NAME") if f"`{fact}`" not in text] == []


def test_each_header_of_the_router_is_documented() -> None:
    """Every `x-router-…` header that the code names is in the README."""
    named = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
                value = node.value.decode("latin-1") if isinstance(node.value, bytes) else node.value
                if re.fullmatch(r"x-router-[a-z-]*[a-z]", value):
                    named.add(value)
    assert "x-router-trace" in named
    documented = set(re.findall(r"`(x-router-[a-z-]+)", page("README.md")))
    assert named <= documented


def test_the_metrics_table_is_the_code() -> None:
    """Every metric family that is served stands in the operations page with its type, and no other."""
    links = ("redis", "redis_affinity", "redis_jobs", "redis_fleet", "redis_fleet_traces")
    sinks = ("traces", "trace_reader", "capture", "otlp", "admission", "retry_budget")
    doors = ("connections", "admin_connections")
    names = (
        "upstream_pool",
        "cache",
        "flights",
        "affinity",
        "batch_decisions",
        "deferred",
        "jobs",
        "webhooks",
        "fleet",
        "fleet_traces",
        *links,
        "policies",
        "listener",
        "models_refresh",
        *doors,
        *sinks,
    )
    gauges = dict.fromkeys(names, dict)
    distributions = {link: lambda: ({float("inf"): 0}, 0.0) for link in links}
    sink = MetricsSink(gauges=gauges, distributions=distributions, revision=lambda: "r1", turned_away=dict, lanes=dict)
    sink.write(Trace("0" * 32, 0))
    served = dict(re.findall(r"^# TYPE (\w+) (\w+)$", sink.render().decode(), re.MULTILINE))
    rows = table(page("docs/operations.md"), "metric")
    assert {row[0].strip("`"): row[1] for row in rows} == served


@pytest.mark.anyio
async def test_the_running_router_serves_these_metrics(redis_server: RedisServer) -> None:
    """The parts are joined to the metrics: with everything on, each family of the table is there, and each stat."""
    settings = {
        "cache": redis_server.url,
        "affinity": f"{redis_server.url}/1",
        "jobs": f"{redis_server.url}/2",
        "fleet": f"{redis_server.url}/3",
        "capture": "1%",
    }
    async with stage(policy=always("cache: {ttl: 1h}"), **settings) as s:
        for _ in range(2):
            await s.messages()
        served = (await asyncio.to_thread(s.app.metrics.render)).decode()
    families = set(re.findall(r"^# TYPE (\w+) ", served, re.MULTILINE))
    rows = table(page("docs/operations.md"), "metric")
    off = {"router_models_refresh", "router_otlp"}  # without a key of its own, and without a collector
    assert {row[0].strip("`") for row in rows} - families == off
    assert families <= {row[0].strip("`") for row in rows}
    assert 'router_cache_requests_total{reason="",result="hit"} 1.0' in served
    assert 'router_flights{stat="begun"} 1.0' in served
    assert 'router_redis{stat="is_up"} 1.0' in served
    assert float(re.findall(r"^router_redis_seconds_count (\S+)", served, re.MULTILINE)[0]) > 0
    stats = re.findall(r'^router_(cache|redis|flights)\{stat="(\w+)"\}', served, re.MULTILINE)
    text = page("docs/operations.md")
    own = {stat for family, stat in stats if family != "cache" or not stat.startswith("near_")}
    assert [stat for stat in sorted(own) if f"`{stat}`" not in text] == []


@pytest.mark.parametrize(("column", "words"), [("bypass", BYPASSES), ("not kept", UNSTORED)])
def test_the_reasons_of_the_cache_are_the_code(column: str, words: tuple[str, ...]) -> None:
    """Each word of `cache_reason` is explained, in the order of the code, and no other."""
    assert [row[0].strip("`") for row in table(page("docs/operations.md"), column)] == list(words)


def test_what_does_not_count_for_the_cache_is_the_code() -> None:
    """Fields and headers that are no part of the key, with the reasons that the code gives."""
    text = page("docs/operations.md")
    assert table(text, "field") == [[f"`{name}`", reason] for name, reason in key.IGNORED_FIELDS.items()]
    headers = [[f"`{name}`", reason] for name, reason in key.IGNORED_HEADERS.items()]
    headers += [[f"`{name}…`", reason] for name, reason in key.IGNORED_HEADER_PREFIXES.items()]
    assert table(text, "header") == headers


def as_user(server: RedisServer, *command: str) -> bytes:
    """What Redis says to a command of the documented user."""
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection,
        connection.makefile("rb") as said,
    ):
        connection.sendall(b"AUTH router s3cret\r\n" + " ".join(command).encode() + b"\r\n")
        assert said.readline() == b"+OK\r\n"
        return said.readline()


@pytest.mark.anyio
async def test_the_redis_user_of_the_docs_has_all_the_rights_it_needs(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the documented line the cache, its purges and the conversations work, and Redis refuses nothing."""
    be_patient(monkeypatch)
    (line,) = re.findall(r"^ACL SETUSER .*$", page("docs/operations.md"), re.MULTILINE)
    assert redis_server.say(*line.replace("PASSWORD", "s3cret").split()) == b"+OK\r\n"
    url = redis_server.url.replace("redis://", "redis://router:s3cret@")
    purge = ["cache", "purge", "--all", "--json", "--cache", f"{url}/1"]
    async with stage(policy=always("cache: {ttl: 1h}"), cache=f"{url}/1", affinity=url, fleet=url) as s:
        seen = [(await s.messages()).header("x-router-cache") for _ in range(2)]
        purged = await asyncio.to_thread(CliRunner().invoke, cli, purge)
        assert json.loads(purged.stdout)["told"] == 1
        seen.append((await s.messages()).header("x-router-cache"))
        assert seen == ["miss", "hit", "miss"]
        link = s.app.stores.links["redis"]
        names, token = shared.keys_of("0" * 64), "1" * 32
        assert await link.run(shared.LOOK_UP, names, [100, token, "", 3000]) == [b"lead"]
        assert await link.run(shared.LOOK_UP, names, [100, "2" * 32, "", 3000]) == [b"leader", token.encode()]
        assert await link.run(shared.TRIM, [shared.PURGES], [1000]) == 1
        assert await link.run(shared.RENEW, names[1:2], [token, 3000]) == 1
        assert await link.run(shared.FINISH, names, [token, "entry", 3000, "handed over", 3000]) == 1
        assert s.app.stores.fleet_reader is not None
        await s.app.stores.fleet_reader.flush()
        assert (await s.app.stores.fleet_reader.page(TraceQuery())).held > 0
        links = s.app.stores.links.values()
    assert [each.stats()["error_replies"] for each in links] == [0] * len(links)
    assert redis_server.say("ACL", "LOG") == b"*0\r\n"
    assert as_user(redis_server, "SET", "router:v1:x", "1") == b"+OK\r\n"
    for refused in (
        "SET other:key 1",
        "KEYS *",
        "FLUSHALL",
        "CONFIG GET *",
        "ACL LIST",
        "PUBLISH c m",
        "CLUSTER NODES",
    ):
        assert as_user(redis_server, *refused.split()).startswith(b"-NOPERM"), refused


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_each_relative_link_leads_somewhere(path: Path) -> None:
    """Links between pages name files that are there, and headings that those files have."""
    for link in links(path.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name) if name else path
        assert target.exists(), f"{path.name} links to `{link}`"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{path.name} links to `{link}`"


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_the_modules_that_a_page_names_exist(path: Path) -> None:
    """A path such as `serve/plan.py` is one of the package or of the checkout."""
    for name in re.findall(r"`([\w./-]+\.(?:py|bin|yaml))`", path.read_text(encoding="utf-8")):
        if "/" in name or name.endswith(".py"):
            assert (PACKAGE / name).exists() or (ROOT / name).exists(), name


def test_the_architecture_names_every_room() -> None:
    """Whatever lies at the top of the package has its place in the table of floors."""
    text = page("docs/architecture.md")
    for entry in PACKAGE.iterdir():
        if entry.name.startswith("_"):
            continue
        assert f"`{entry.name}/" in text or f"`{entry.name}`" in text, entry.name


def test_the_architecture_puts_each_room_on_its_floor() -> None:
    """The table of floors on the page agrees with the one that the floors test checks."""
    for floor, rooms, _ in table(page("docs/architecture.md"), "floor"):
        for room in re.findall(r"`([^`]+)`", rooms):
            name = room.removesuffix(".py").strip("/").replace("/", ".")
            assert floor_of(name) == floor, room


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "decisions").glob("*.md")), ids=lambda path: path.stem)
def test_a_decision_has_its_four_parts(path: Path) -> None:
    """A decision without its context or its price is only an order."""
    text = path.read_text(encoding="utf-8")
    assert re.fullmatch(r"\d{3}-[a-z0-9-]+", path.stem)
    assert text.startswith(f"# {path.stem[:3]}: ")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Decision", "Alternatives", "Consequences"]


def test_the_policy_of_the_readme_holds(tmp_path: Path) -> None:
    """The rule and the test that the README tells a reader to add pass `router policy check`."""
    shown, rule, own_test = fenced(page("README.md"), "yaml")
    policy = (ROOT / "policies" / "default.yaml").read_text(encoding="utf-8")
    name = "  - name: structured-work\n"
    assert policy.count(name) == 1
    assert shown.startswith(name)
    (tmp_path / "lanes.yaml").write_bytes((ROOT / "policies" / "lanes.yaml").read_bytes())
    edited = policy.replace(name, f"{rule}\n{name}").rstrip("\n") + "\n\n" + own_test
    (tmp_path / "default.yaml").write_text(edited, encoding="utf-8")
    result = CliRunner().invoke(cli, ["policy", "check", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    tests = json.loads(result.output)["tests"]
    assert "a translation for the legal team stays" in [test["name"] for test in tests if test["ok"]]


def test_the_settings_file_of_the_docs_is_one() -> None:
    """The names in the example are settings, or secrets by file."""
    (example,) = fenced(page("docs/settings.md"), "yaml")
    names = re.findall(r"^(\w+):", example, re.MULTILINE)
    assert names
    assert {name.removesuffix("_file") for name in names} <= set(SETTINGS)


def test_the_image_starts_the_server_as_nobody() -> None:
    """Numeric user, exec form, hashes checked, and nothing copied that is not there."""
    text = page("Dockerfile")
    assert "\nUSER 10001:10001\n" in text
    assert '\nENTRYPOINT ["router"]\nCMD ["serve"]\n' in text
    assert "--require-hashes --only-binary :all: -r requirements/run.txt" in text
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    for name in re.findall(r"ROUTER_([A-Z_]+)=", text):
        assert name.lower().removesuffix("_file") in SETTINGS
