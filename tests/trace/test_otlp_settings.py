"""The `OTEL_*` variables: what turns the exporter on and off, and what stops the start, by name."""

from __future__ import annotations

import pytest

from router.errors import SettingsError
from router.otel import check_otel, origin_of, read_endpoint, read_resource
from router.settings import Settings, resolve
from router.trace.spans import Origin

HERE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


@pytest.mark.parametrize(
    ("more", "address"),
    [
        ({}, ("http", "collector", 4318, "/v1/traces")),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c.example/otlp/"}, ("https", "c.example", 443, "/otlp/v1/traces")),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t:1"}, ("http", "t", 1, "/")),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t/x/?k=v"}, ("http", "t", 80, "/x/?k=v")),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": ""}, ("http", "collector", 4318, "/v1/traces")),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1]:4318"}, ("http", "::1", 4318, "/v1/traces")),
    ],
)
def test_the_address_of_all_signals_gets_a_path_and_that_of_traces_is_taken_as_it_is(more, address) -> None:
    """As the specification of the protocol says; empty is unset."""
    found = read_endpoint({**HERE, **more})
    assert found is not None
    assert (found.scheme, found.host, found.port, found.target) == address


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": " "},
        {"OTEL_SERVICE_NAME": "x", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {**HERE, "OTEL_SDK_DISABLED": "true"},
        {**HERE, "OTEL_SDK_DISABLED": "TRUE"},
        {**HERE, "OTEL_TRACES_EXPORTER": "none"},
    ],
    ids=str,
)
def test_nothing_is_exported_unless_it_is_asked_for(environment) -> None:
    """No endpoint, or turned off."""
    assert read_endpoint(environment) is None
    check_otel(environment)


def test_the_variables_of_traces_win_over_those_of_all_signals() -> None:
    """Headers are percent-decoded; the timeout is in milliseconds."""
    found = read_endpoint(
        {
            **HERE,
            "OTEL_EXPORTER_OTLP_HEADERS": "a=1",
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "Authorization=Basic%20eA==, x-b = 2 ,",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "5000",
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "2500",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        }
    )
    assert found is not None
    assert found.headers == {"authorization": "Basic eA==", "x-b": "2"}
    assert (found.timeout_s, found.is_compressed) == (2.5, True)


REFUSED = [
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://collector:4317"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:port"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:canary@c"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c/a b"),
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "nowhere"),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "canary"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "a b=canary"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "a=canary%0d%0ab"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "host=canary"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "10"),  # meant as seconds, which the specification does not
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "-1"),
    ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
    ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem"),
    ("OTEL_SDK_DISABLED", "yes"),
    ("OTEL_TRACES_EXPORTER", "console"),
    ("OTEL_RESOURCE_ATTRIBUTES", "team"),
    ("OTEL_RESOURCE_ATTRIBUTES", "team=a%0ab"),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_a_value_that_cannot_be_used_stops_the_start_by_its_name(name: str, value: str) -> None:
    """What may hold a credential is not shown."""
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector:4318", name: value}
    with pytest.raises(SettingsError) as caught:
        check_otel(environment)
    assert f"`{name}`" in caught.value.message
    assert "canary" not in caught.value.message + caught.value.hint


def test_the_resource_says_which_process_this_is() -> None:
    """The name of the service wins over the list of attributes, which wins over what is given."""
    assert read_resource({}, "1.2", "i1") == {
        "service.name": "model-router",
        "service.version": "1.2",
        "service.instance.id": "i1",
    }
    environment = {"OTEL_RESOURCE_ATTRIBUTES": "service.name=a,team=b%20c,service.instance.id=pod-1"}
    assert read_resource(environment, "1", "i1")["service.name"] == "a"
    found = read_resource({**environment, "OTEL_SERVICE_NAME": "edge"}, "1", "i1")
    assert (found["service.name"], found["team"], found["service.instance.id"]) == ("edge", "b c", "pod-1")


def test_the_upstream_is_named_by_host_and_port() -> None:
    """The port of the scheme where none is said."""
    assert origin_of("https://api.example") == Origin("https://api.example", "api.example", 443)
    assert origin_of("http://[::1]:9/") == Origin("http://[::1]:9", "::1", 9)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("otel_semconv", "next", "latest"),
        ("trace_context", "continue", "trust"),
        ("trace_context_out", "on", "true"),
    ],
)
def test_the_settings_take_their_words_only(tmp_path, monkeypatch, name: str, good: str, bad: str) -> None:
    """A wrong one is said with what is expected."""
    monkeypatch.chdir(tmp_path)
    assert getattr(resolve({}, {f"ROUTER_{name.upper()}": good}).settings, name) == good
    assert getattr(Settings(), name) in ("released", "restart", "off")
    with pytest.raises(SettingsError, match=f"`{name}` is `{bad}`, expected `"):
        resolve({}, {f"ROUTER_{name.upper()}": bad})
