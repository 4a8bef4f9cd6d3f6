"""The error family: each has a code of its own, a status that exists, and one shape on the wire."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from router import errors
from router.errors import RouterError, error_body

FAMILY = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, RouterError)]
GROUPS = {"R1": "client", "R3": "upstream", "R9": "router"}


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_an_error_knows_what_it_is(kind):
    """Code in its group, a status for clients, a type of the API, a source, and a docstring."""
    assert kind.code[0] == "R"
    assert kind.code[1:].isdigit()
    assert len(kind.code) == 4
    assert 400 <= kind.status <= 599
    assert kind.source in ("client", "operator", "upstream", "router")
    assert GROUPS.get(kind.code[:2], kind.source) == kind.source
    assert kind.wire_type.endswith("_error") or kind.wire_type == "request_too_large"
    assert kind.__doc__


def test_no_two_errors_share_a_code():
    """So that a code in a header or a log line names one thing."""
    codes = [kind.code for kind in FAMILY]
    assert len(set(codes)) == len(codes)


def test_the_wire_shape_is_the_apis():
    """`{"type": "error", "error": {"type", "message"}, "request_id"}`, on one line whatever the message holds."""
    error = errors.InvalidRequest("a\r\nb\u2028\x00é", hint="do this", retryable=True, retry_after_s=2)
    body = error.to_wire("req_1")
    assert json.loads(body) == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "a\r\nb\u2028\x00é"},
        "request_id": "req_1",
    }
    assert body == error_body("invalid_request_error", error.message, "req_1")
    assert not set(body) & {0, 10, 13}
    assert body.isascii()
    assert (str(error), error.hint, error.retryable, error.retry_after_s) == (error.message, "do this", True, 2)


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_the_proxy_status_names_the_code(kind):
    """RFC 9209: who, what kind, and the code as details."""
    value = kind("x").proxy_status()
    assert value.startswith("router; error=")
    assert f'details="{kind.code}"' in value
    assert "\n" not in value


def test_every_raise_in_the_house_is_of_the_family():
    """Outside of its own checks the flow raises nothing that a client could not be told of."""
    serve = Path(errors.__file__).parent / "serve"
    names = {kind.__name__ for kind in FAMILY}
    for path in sorted(serve.glob("*.py")):
        for line in path.read_text().splitlines():
            words = line.strip().split("(")[0].split()
            if words[:1] == ["raise"] and len(words) > 1 and words[1][0].isupper():
                assert words[1] in names, f"{path.name}: {line.strip()}"
