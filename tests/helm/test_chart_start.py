"""The router starts with what the chart gives it, and with nothing that is wrong (F98)."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from kit.batch_upstream import BatchUpstream
from kit.chart import CHART, VALUE_SETS, Chart, template
from kit.installed import ended, installed
from kit.live import program
from kit.redis_server import RedisServer
from kit.stage import KEY, always, stage

from router.errors import SettingsError
from router.settings import resolve

Rendered = Callable[[str], Chart]


@pytest.mark.parametrize("value_set", VALUE_SETS)
def test_the_router_takes_the_settings_of_every_value_set(rendered: Rendered, value_set: str, tmp_path: Path) -> None:
    """Each name is a setting, each value is in bounds, and what depends on each other is there."""
    settings = resolve({}, rendered(value_set).environment(tmp_path)).settings
    assert (settings.host, settings.port) == ("0.0.0.0", 8080)
    assert (settings.admin_host, settings.admin_port) == ("0.0.0.0", 8081)
    assert settings.admin_token
    assert (Path(settings.policies) / "default.yaml").exists() or value_set == "existing-secrets"


def test_values_arrive_as_settings(rendered: Rendered, tmp_path: Path) -> None:
    """One Redis for answers, conversations and batches, numbers as they were written, off where it is off."""
    settings = resolve({}, rendered("workers").environment(tmp_path / "workers")).settings
    assert settings.cache == "redis://redis.default:6379?max_mb=64"
    assert settings.affinity == settings.jobs == settings.fleet == "redis://redis.default:6379"
    assert settings.deferred == "off"  # that one may evict
    assert (settings.workers, settings.max_body_mb, settings.drain_timeout) == (4, 256, "600s")
    cluster = resolve({}, rendered("cluster").environment(tmp_path / "cluster")).settings
    assert cluster.cache.startswith("memory:")
    assert cluster.affinity.startswith("rediss+cluster:")
    assert resolve({}, rendered("all-off").environment(tmp_path / "off")).settings.traces == "off"


# Of a pod that got past the schema (extraEnv, the content of a Secret): (variable, value, the setting that is named).
WRONG = [
    ("ROUTER_PROT", "8080", "ROUTER_PROT"),
    ("ROUTER_PORT", "tcp://10.0.0.7:80", "port"),
    ("ROUTER_MAX_CONCURRENT", "lots", "max_concurrent"),
    ("ROUTER_UPSTREAM_URL", "api.anthropic.com", "upstream_url"),
    ("ROUTER_DRAIN_TIMEOUT", "10", "drain_timeout"),
    ("ROUTER_LOG_LEVEL", "loud", "log_level"),
    ("ROUTER_UPSTREAM_API_KEY", "sk-ant-canary-5b1d", "upstream_api_key"),  # and no `keys`
    ("ROUTER_KEYS", "/nowhere/keys.yaml", "keys"),
    ("ROUTER_WORKERS", "0", "workers"),
]


@pytest.mark.parametrize(("variable", "value", "named"), WRONG, ids=[case[0] for case in WRONG])
def test_a_wrong_setting_is_named(rendered: Rendered, tmp_path: Path, variable: str, value: str, named: str) -> None:
    """The message says which setting, and holds no secret."""
    environment = rendered("minimal").environment(tmp_path) | {variable: value}
    with pytest.raises(SettingsError) as refused:
        resolve({}, environment)
    assert f"`{named}`" in str(refused.value)
    assert "canary" not in str(refused.value) + str(refused.value.hint)


@pytest.mark.parametrize(
    "content", ["", "\n", "first-canary-5b1d\nsecond-canary-5b1d\n"], ids=["empty", "blank", "two lines"]
)
def test_a_secret_that_is_none_is_named_and_not_shown(rendered: Rendered, tmp_path: Path, content: str) -> None:
    """The file of a Secret that was made by a slip of the hand stops the start; a line break at its end is no slip."""
    chart = rendered("minimal")
    with pytest.raises(SettingsError, match="admin_token_file") as refused:
        resolve({}, chart.environment(tmp_path, {("router-admin", "admin-token"): content}))
    assert "canary" not in str(refused.value) + str(refused.value.hint)
    good = resolve({}, chart.environment(tmp_path, {("router-admin", "admin-token"): "a-token\n"}))
    assert good.settings.admin_token == "a-token"


@pytest.mark.anyio
async def test_a_pod_with_a_wrong_setting_does_not_start(rendered: Rendered, tmp_path: Path) -> None:
    """The process ends with status 2 before it listens, and the last thing it says names the setting."""
    environment = rendered("minimal").environment(tmp_path) | {"ROUTER_MAX_CONCURENT": "10"}
    status, out, err = await ended("serve", cwd=tmp_path, **environment)
    assert (status, out) == (2, "")
    assert "ROUTER_MAX_CONCURENT" in err
    assert "ROUTER_MAX_CONCURRENT" in err  # the near name
    assert "Traceback" not in err


@pytest.mark.anyio
async def test_the_request_of_helm_test_comes_through(rendered: Rendered, tmp_path: Path) -> None:
    """What the pod of `helm test` runs, run here: the chart's settings and policies, the simulator, one stream."""
    chart = rendered("minimal")
    (pod,) = chart.all("Pod")
    simulator, router = pod["spec"]["initContainers"]
    (request,) = pod["spec"]["containers"]
    assert simulator["args"] == ["simulate", "--latency", "none"]
    assert router["args"][:3] == ["serve", "--host", "127.0.0.1"]
    script, origin, service = request["args"]
    assert (request["command"], origin, service) == (
        ["python", "-c"],
        "http://127.0.0.1:8080",
        "http://r-model-router:8080",
    )
    assert script == (CHART / "files" / "helm_test.py").read_text(encoding="utf-8")
    environment = chart.environment(tmp_path) | {"ROUTER_HOST": "127.0.0.1", "ROUTER_ADMIN_HOST": "127.0.0.1"}
    with program("simulate", "--latency", "none", "--port", "0") as addresses:
        environment["ROUTER_UPSTREAM_URL"] = next(iter(addresses.values()))
        async with installed(cwd=tmp_path, **environment) as running:
            told = await asyncio.create_subprocess_exec(
                sys.executable, "-c", script, running.api, running.api,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            said, complaint = await told.communicate()
            assert told.returncode == 0, complaint.decode()
            metrics = await running.request(
                "GET", "/metrics", headers=[(b"authorization", b"Bearer secret-of-admin-token")], admin=True
            )
    assert re.search(
        r"x-router-model=claude-haiku\S* x-router-rule=structured-work x-router-policy=default@", said.decode()
    )
    assert "refuses who has no credential" in said.decode()
    assert b"router_policy_info" in metrics.body


@pytest.mark.anyio
async def test_pods_take_what_can_wait_only_into_a_redis_that_was_named_for_it(
    helm: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Answered at once by default, with 202 where there is a `jobsRedis`; what was taken goes on where no more is."""

    def pod(name: str, **values: object) -> dict[str, object]:
        given = {"admin": {"token": "t"}, "tenantSecret": {"value": "s"}, "redis": {"url": f"{redis_server.url}/0"}}
        said = template(helm, values={**given, **values})
        assert said.status == 0, said.err
        chart = Chart(tuple(each for each in yaml.safe_load_all(said.out) if each), said.out)
        settings = resolve({}, chart.environment(tmp_path / name)).settings
        of_redis = ("cache", "affinity", "fleet", "jobs", "deferred", "tenant_secret")
        return {setting: getattr(settings, setting) for setting in of_redis}

    up = BatchUpstream(ends_at_once=True)
    soon = always("deferred: {max_wait: 10ms}")
    jobs = f"{redis_server.url}/1"
    later = (b"prefer", b"respond-async")
    async with (
        stage(up.behave, policy=soon, **pod("named", jobsRedis={"url": jobs})) as one,
        # With the store of the other one, as where `redis.jobs` was switched off.
        stage(up.behave, policy=soon, **pod("plain") | {"jobs": jobs}) as other,
    ):
        at_once = await other.messages(later, text="now")
        assert (at_once.status, at_once.header("preference-applied")) == (200, None)
        kept = await one.messages(later, text="later")
        assert (kept.status, kept.header("preference-applied")) == (202, "respond-async")
        place = "/v1/messages/deferred/" + kept.json()["id"]
        assert (await other.request("GET", place, None, KEY)).status in (200, 202)
        assert len(up.plain) == 1
