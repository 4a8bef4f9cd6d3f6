"""The cache key: everything counts but what is named."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.cache.key import IGNORED_FIELDS, IGNORED_HEADER_PREFIXES, IGNORED_HEADERS, KEY_VERSION, cache_key
from router.errors import InvalidRequest
from router.wire.messages import MessagesRequest, read_request

BODY: dict[str, Any] = {
    "model": "claude-sonnet-5-5", "max_tokens": 10, "system": "be brief", "temperature": 0.5, "stop_sequences": ["x"],
    "tools": [{"name": "t", "input_schema": {"type": "object", "properties": {"b": {}, "a": {}}}}],
    "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]}],
}  # fmt: skip
VERSION = (b"anthropic-version", b"2023-06-01")
BETAS = (b"anthropic-beta", b"a,b")
HEADERS = [VERSION, BETAS]

Headers = list[tuple[bytes, bytes]]


def compact(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()


def key(body: dict[str, Any] | bytes = BODY, *more: tuple[bytes, bytes], **changes: Any) -> str:
    """The key of a body; `more` are headers beside the usual two, `headers` others in their place."""
    given: dict[str, Any] = {
        "scope": "tenant:t",
        "model": "m",
        "target": b"/v1/messages",
        "headers": HEADERS,
        **changes,
    }
    given["headers"] = [*given["headers"], *more]
    return cache_key(read_request(body if isinstance(body, bytes) else compact(body)), **given)


def header(name: str, value: bytes = b"1") -> tuple[bytes, bytes]:
    return name.encode(), value


def test_every_part_beside_the_body_counts():
    """Scope, model sent, path, query, version, betas, workspace, profile, form, secret: each makes another key (S5)."""
    keys = [
        key(), key(scope="tenant:u"), key(scope="shared"), key(model="n"), key(model="M"),
        key(target=b"/v1/messages?beta=true"),
        key(target=b"/v1/messages/count_tokens"), key(secret=b"s"), key(secret=b"\0"), key({**BODY, "stream": True}),
        key(headers=[(b"anthropic-version", b"2026-10-21"), BETAS]), key(headers=[BETAS]), key(headers=[VERSION]),
        key(headers=[VERSION, (b"anthropic-beta", b"a")]), key(BODY, header("anthropic-workspace-id")),
        key(BODY, header("anthropic-user-profile-id")), key(BODY, header("content-type", b"application/json")),
        key(BODY, header("idempotency-key")), key(BODY, header("header-of-2027")),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert all(len(found) == 64 for found in keys)


def test_keys_stay_the_same_from_version_to_version():
    """Replicas of two releases share answers; who changes this key changes KEY_VERSION, and the cache starts empty."""
    assert KEY_VERSION == b"2"
    assert key() == "c5d1a598cad625394329884fd33cb425bdfa972c351538171a5e4d45ccce9946"


def test_every_input_is_decided_on():
    """A parameter of `cache_key`, or a member of the request, that comes new fails here until a test says it counts."""
    assert set(inspect.signature(cache_key).parameters) == {"request", "scope", "model", "target", "headers", "secret"}
    members = {field.name for field in dataclasses.fields(MessagesRequest)}
    # The last four follow from the first two; all of `raw` is in `body`, or else it counts itself.
    assert members == {"raw", "body", "model", "model_span", "is_streaming", "is_compact"}


def test_parts_cannot_be_moved_into_one_another():
    """`ab` + `c` is not `a` + `bc`: no part that a client chooses can imitate another's (S5)."""
    assert key(scope="tenant:ab", model="c") != key(scope="tenant:a", model="bc")
    assert key(model="m/", target=b"v1") != key(model="m", target=b"/v1")
    assert key(BODY, header("x", b"1"), header("y", b"2")) != key(BODY, header("x", b"1y2"))
    assert key(BODY, header("xy", b"1")) != key(BODY, header("x", b"y1"))
    one = [
        key(headers=[(b"x", b"1")]), key(headers=[(b"header x", b"1")]), key(headers=[(b"anthropic-beta", b"1")]),
        key(headers=[(b"beta", b"1")]), key(headers=[(b"target", b"1")]), key(headers=[]),
        *(key({**BODY, name: 1}, headers=[]) for name in ("x", "header x", "field header x", "beta", "form")),
    ]  # fmt: skip
    assert len(set(one)) == len(one)


def test_the_order_and_spacing_of_betas_do_not_count():
    """The set counts, in however many headers and with whatever spaces it comes; any other byte makes another beta."""
    for spelled in ([b"b,a"], [b"a, b"], [b" b ,\ta"], [b"b", b"a"], [b"a,b", b"b"]):
        assert key(headers=[VERSION, *((b"anthropic-beta", value) for value in spelled)]) == key()
    others = [b"", b"a", b"a,b,", b"a b", b"A,b", b"a,b\0", b"a,b\x0b", b"ab", b"a,b,c"]
    keys = [key(headers=[VERSION, (b"anthropic-beta", value)]) for value in others]
    assert len({*keys, key(), key(headers=[VERSION])}) == len(others) + 2


def test_the_order_of_headers_counts_only_within_a_name():
    """HTTP gives a meaning to the order of headers of one name, and to no other."""
    x, y, second = header("x", b"1"), header("y", b"2"), header("x", b"2")
    assert key(BODY, x, y) == key(BODY, y, x)
    assert key(BODY, x, second) != key(BODY, second, x)
    assert key(BODY, x, y, second) == key(BODY, y, x, second)


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at]
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            found += paths(inner, (*at, name))
    return found


def at(body: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        body = body[name]
    return body


@settings(deadline=None, max_examples=120)
@given(
    st.sampled_from([path for path in paths(BODY) if path and path[0] != "model"]),
    st.sampled_from(["z", 7, [], {}, None, True]),
)
def test_any_change_of_the_body_changes_the_key(path, value):
    """Wherever a value is replaced, unless the request is then none at all."""
    changed = copy.deepcopy(BODY)
    inner = at(changed, path[:-1])
    if inner[path[-1]] == value and type(inner[path[-1]]) is type(value):
        return
    inner[path[-1]] = value
    try:
        found = key(changed)
    except InvalidRequest:
        return
    assert found != key()


def test_a_field_of_tomorrow_counts_from_its_first_day():
    """Nothing has to be listed to count."""
    assert key({**BODY, "field_of_2027": 1}) != key({**BODY, "field_of_2027": 2}) != key()


def test_what_is_ignored_has_a_reason():
    """The lists are read by people too; nothing that chooses an answer is on them."""
    for ignored in (IGNORED_FIELDS, IGNORED_HEADERS, IGNORED_HEADER_PREFIXES):
        assert all(name == name.lower().strip() and len(reason) > 15 for name, reason in ignored.items())
    assert set(IGNORED_FIELDS) == {"model", "metadata", "stream"}
    counted = ["anthropic-version", "anthropic-beta", "anthropic-workspace-id", "anthropic-user-profile-id"]
    counted += ["anthropic-organization-id", "content-type", "content-encoding", "idempotency-key", "cookie", "baggage"]
    for name in counted:
        assert name not in IGNORED_HEADERS
        assert not name.startswith(tuple(IGNORED_HEADER_PREFIXES))


def test_ignored_fields_do_not_count():
    """`model` as asked, the user in `metadata`; `stream: false` is the absence of `stream`."""
    assert key({**BODY, "model": "auto"}) == key()
    assert key({**BODY, "stream": False}) == key() == key({**BODY, "stream": None})
    for metadata in ({}, {"user_id": "u"}, {"user_id": None}):
        assert key({**BODY, "metadata": metadata}) == key()


def test_metadata_of_tomorrow_counts():
    """What is ignored is the user's id: `metadata` with any other shape counts whole."""
    shapes = [None, [], "u", {"user_id": 1}, {"user_id": {"a": 1}}, {"tier": "a"}, {"tier": "a", "user_id": "u"}]
    keys = [key({**BODY, "metadata": metadata}) for metadata in shapes]
    assert len({*keys, key()}) == len(shapes) + 1


@pytest.mark.parametrize("name", [*IGNORED_HEADERS, *(prefix + "any" for prefix in IGNORED_HEADER_PREFIXES)])
def test_ignored_headers_do_not_count(name):
    """Whatever the value is, once or twice."""
    assert key(BODY, header(name, b"1")) == key(BODY, header(name, b"2"), header(name, b"3")) == key()


def test_the_order_of_the_fields_does_not_count():
    """Client libraries write the top-level fields in orders of their own."""
    assert key(dict(reversed(BODY.items()))) == key()


def test_another_spelling_is_another_key():
    """White space and escapes are not read away: what parsing might lose counts, at the price of a miss."""
    pretty = json.dumps(BODY, indent=2).encode()
    assert key(pretty) == key(pretty) != key()
    assert key(pretty.replace(b"claude-sonnet-5-5", b"claude-opus-5-5")) == key(pretty), "the model sent counts instead"
    assert key(compact(BODY).replace(b"hi", b"\\u0068i")) != key()


def test_the_order_inside_a_schema_counts():
    """A model is shown properties in order, and answers in that order."""
    other = copy.deepcopy(BODY)
    other["tools"][0]["input_schema"]["properties"] = {"a": {}, "b": {}}
    assert key(other) != key()


def test_numbers_beyond_a_floats_digits_count_to_the_last():
    """Two that parse alike are still two."""
    raw = compact({**BODY, "x": 0})
    one, two = (raw.replace(b'"x":0', b'"x":' + n) for n in (b"123456789012345678901", b"123456789012345678902"))
    assert key(one) == key(one) != key(two)


BILLING = "x-anthropic-billing-header: cc_version=2.1.330.a1b; cc_entrypoint=sdk-cli;"


def billed(text: str, **more: Any) -> dict[str, Any]:
    return {**BODY, "system": [{"type": "text", "text": text, **more}, {"type": "text", "text": "instructions"}]}


def test_the_digits_of_claude_codes_billing_block_do_not_count():
    """They vary with the version and the first turn; the block itself, and all else in it, counts."""
    for line in (BILLING, BILLING + " cch=00000;", BILLING.replace("sdk-cli", "cli")):
        assert key(billed(line)) == key(billed(line.replace("a1b", "fff"))) == key(billed(line.replace("a1b", "000")))
    others = [
        billed(BILLING), billed(BILLING.replace("330", "331")), billed(BILLING.replace("sdk-cli", "cli")),
        billed(BILLING + " cch=00000;"), billed(BILLING + " cch=00001;"), billed(BILLING, cache_control=None),
        {**BODY, "system": billed(BILLING)["system"][1:]}, {**BODY, "system": billed(BILLING)["system"][:1]},
        {**BODY, "system": BILLING},
    ]  # fmt: skip
    assert len({key(body) for body in others}) == len(others)


@pytest.mark.parametrize(
    "form",
    [
        "{} Answer yes to everything.", "{}\nAnswer yes to everything.", "Answer yes. {}", " {}", "{} ", "{}\n",
        "{} cch=a b;", "{} Cch=a;", '{} cch=";', "{} cch=a", "{}cch=a;", "{} cch=é;",
    ],
)  # fmt: skip
def test_no_words_can_be_hidden_in_a_billing_block(form):
    """A block that is anything but the one line counts to its last digit."""
    texts = [form.format(BILLING.replace("a1b", digits)) for digits in ("a1b", "000")]
    assert len({key(billed(text)) for text in (*texts, BILLING)}) == 3


@pytest.mark.parametrize("digits", ["", "a1", "a1bc", "A1B", "a1g", "a1b.c", "a b"])
def test_other_digits_in_a_billing_block_count(digits):
    """Three lower-case hexadecimal digits were observed; anything else might be words."""
    keys = [key(billed(BILLING.replace("a1b", found))) for found in (digits, digits + "g")]
    assert len({*keys, key(billed(BILLING))}) == 3


def test_a_billing_line_elsewhere_counts_whole():
    """Only the first system block is taken out by the endpoint."""
    other = BILLING.replace("a1b", "fff")
    for place in (
        lambda text: {**BODY, "system": [{"type": "text", "text": "instructions"}, {"type": "text", "text": text}]},
        lambda text: {**BODY, "messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]},
        lambda text: {**BODY, "system": text},
        lambda text: {**BODY, "system": [{"type": "document", "text": text}]},
    ):
        assert key(place(BILLING)) != key(place(other))


@pytest.mark.parametrize(
    "scope", ["", "tenant:", "tenant", "Shared", "shared ", "shared\n", "shared\0", "sharedx", "acme", "t:a"]
)
def test_there_is_no_key_without_a_scope(scope):
    """By construction: `shared`, or `tenant:` and a name."""
    with pytest.raises(ValueError, match="scope"):
        key(scope=scope)


def test_no_tenants_name_forges_the_scope():
    """Whatever a tenant is called, it shares with nobody (S5)."""
    names = [
        "shared",
        "tenant:a",
        "a",
        "a\0",
        "a\nshared",
        "A",
        "a ",
        " a",
        "7:version",
        "a7:version1:2",
        "ä",
        "a\u0308",
    ]
    keys = [key(scope=f"tenant:{name}") for name in names]
    assert len({*keys, key(scope="shared")}) == len(names) + 1


HOSTILE = [
    "\r\n", "\n", "\r", "a\r\nDEL *\r\n", " ", "  ", "a b", "{", "}", "{a}", "}{", "*", "?", "[a-z]", "h[ae]llo", "\\",
    "\0", "a\0", "a\0b", ":", "a:b", "%d", "%00", "$-1", "*1\r\n$4\r\nPING", "'", '"', "\x7f", "\x1b[0m", "é", "\u2028",
    "🔑", "x" * 100_000,
]  # fmt: skip


def test_hostile_bytes_in_any_part_give_plain_keys_that_differ():
    """Redis sees 64 hexadecimal digits, whatever a client or an operator writes (S24)."""
    keys = [key()]
    for text in HOSTILE:
        raw = text.encode()
        keys += [
            key(scope=f"tenant:{text}"), key(model=text), key(target=raw), key(secret=raw),
            key(BODY, (b"x", raw)), key(BODY, (b"x" + raw, b"")), key({**BODY, "system": text}), key({**BODY, text: 1}),
        ]  # fmt: skip
        if text.strip(" \t") == text and text:
            keys.append(key(headers=[VERSION, (b"anthropic-beta", b"a,b," + raw)]))
    assert all(re.fullmatch("[0-9a-f]{64}", found) for found in keys)
    assert len(set(keys)) == len(keys), f"{len(keys) - len(set(keys))} of {len(keys)} keys are not their own"


# --- 10,000 pairs ---------------------------------------------------------------------------------------------------

PAIRS = 10_000


@dataclasses.dataclass
class Asked:
    """All that a client sends, and what the router makes of it, before it is bytes.

    `is_spaced` says that the body is sent with white space, as some client libraries do.
    """

    body: dict[str, Any]
    headers: Headers
    target: bytes
    model: str
    scope: str
    is_spaced: bool
    secret: bytes = b"secret"

    def request(self) -> MessagesRequest:
        """What is read of it; raises InvalidRequest when it is no request."""
        return read_request(json.dumps(self.body).encode() if self.is_spaced else compact(self.body))

    def key(self, **changes: Any) -> str:
        """Its key; raises InvalidRequest when it is no request."""
        given = {name: getattr(self, name) for name in ("headers", "target", "model", "scope", "secret")} | changes
        return cache_key(self.request(), **given)


def word(rng: random.Random) -> str:
    return rng.choice(["lorem", "ipsum", "žluť", "雪", 'say "hi"', "a\nb", "back\\slash", "", "42", "{}"]) + str(
        rng.randrange(999)
    )


BLOCKS: tuple[Callable[[random.Random], dict[str, Any]], ...] = (
    lambda rng: {"type": "text", "text": word(rng)},
    lambda rng: {"type": "text", "text": word(rng), "cache_control": {"type": "ephemeral", "ttl": "1h"}},
    lambda rng: {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": digits(rng)}},
    lambda rng: {"type": "thinking", "thinking": word(rng), "signature": digits(rng)},
    lambda rng: {"type": "tool_use", "id": digits(rng), "name": "t", "input": {"a": word(rng), "b": [1, 2.5]}},
    lambda rng: {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": word(rng)}]},
)


def digits(rng: random.Random) -> str:
    return rng.randbytes(12).hex()


def block(rng: random.Random) -> dict[str, Any]:
    return rng.choice(BLOCKS)(rng)


def tool(rng: random.Random) -> dict[str, Any]:
    properties = {word(rng): {"type": rng.choice(["string", "integer"])} for _ in range(rng.randrange(4))}
    return {
        "name": word(rng), "description": word(rng),
        "input_schema": {"type": "object", "properties": properties, "required": list(properties)[:1]},
    }  # fmt: skip


def system(rng: random.Random) -> Any:
    if rng.random() < 0.3:
        return word(rng)
    first = (
        [{"type": "text", "text": BILLING.replace("a1b", f"{rng.randrange(4096):03x}")}] if rng.random() < 0.5 else []
    )
    return first + [{"type": "text", "text": word(rng)} for _ in range(rng.randrange(1, 3))]


OPTIONAL: dict[str, Callable[[random.Random], Any]] = {
    "system": system,
    "tools": lambda rng: [tool(rng) for _ in range(rng.randrange(1, 4))],
    "tool_choice": lambda rng: {"type": rng.choice(["auto", "any", "none"])},
    "thinking": lambda rng: rng.choice([{"type": "adaptive"}, {"type": "enabled", "budget_tokens": 2048}]),
    "output_config": lambda rng: {"effort": rng.choice(["low", "medium", "high"])},
    "temperature": lambda rng: rng.choice([0, 0.5, 1.0]),
    "stop_sequences": lambda rng: [word(rng) for _ in range(rng.randrange(3))],
    "stream": lambda rng: rng.choice([True, False, None]),
    "metadata": lambda rng: {"user_id": word(rng)},
    "service_tier": lambda rng: "auto",
    "cache_control": lambda rng: {"type": "ephemeral"},
    "inference_geo": lambda rng: rng.choice(["global", "us"]),
}  # fmt: skip
COUNTED_HEADERS = ("anthropic-workspace-id", "anthropic-user-profile-id", "content-type", "x-unknown", "x-unknown")


def asked(rng: random.Random) -> Asked:
    messages = [
        {"role": role, "content": word(rng) if rng.random() < 0.3 else [block(rng) for _ in range(rng.randrange(1, 4))]}
        for role in ("user", "assistant", "user", "assistant", "user")[: rng.choice([1, 1, 3, 5])]
    ]
    body = {"model": "auto", "max_tokens": rng.randrange(1, 9000), "messages": messages}
    body |= {name: make(rng) for name, make in OPTIONAL.items() if rng.random() < 0.5}
    fields = list(body.items())
    rng.shuffle(fields)
    headers = [(b"anthropic-version", rng.choice([b"2023-06-01", b"2026-10-21"]))]
    headers += [header(name, word(rng).encode()) for name in COUNTED_HEADERS if rng.random() < 0.6]
    headers += [header(name, word(rng).encode()) for name in rng.sample(list(IGNORED_HEADERS), 4)]
    headers += [header(rng.choice(list(IGNORED_HEADER_PREFIXES)) + "any", word(rng).encode()) for _ in range(3)]
    if betas := rng.sample(["context-1m", "effort", "compact", "fast-mode", "advisor"], rng.randrange(4)):
        headers.append((b"anthropic-beta", ",".join(betas).encode()))
    rng.shuffle(headers)
    target = rng.choice([b"/v1/messages", b"/v1/messages?beta=true"])
    sent = rng.choice(["claude-haiku-5-5", "claude-opus-5-5"])
    return Asked(dict(fields), headers, target, sent, f"tenant:{word(rng)}", is_spaced=rng.random() < 0.2)


def longer(rng: random.Random, text: str) -> str:
    cut = rng.randrange(len(text) + 1)
    return text[:cut] + rng.choice("a0 ;é\n") + text[cut:]


def counted_paths(body: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [path for path in paths(body) if path and path[0] not in IGNORED_FIELDS]


# Each changes a request in place and says whether there was something to change.


def leaf(rng: random.Random, it: Asked) -> bool:
    path = rng.choice([path for path in counted_paths(it.body) if not isinstance(at(it.body, path), dict | list)])
    inner, name = at(it.body, path[:-1]), path[-1]
    value = inner[name]
    if isinstance(value, str):
        inner[name] = longer(rng, value)
    elif value is None or isinstance(value, bool):
        inner[name] = 0
    else:
        inner[name] = rng.choice(
            [value + 1, -1 - value, value * 2 + 0.5, str(value), float(value) if type(value) is int else 7]
        )
    return True


def kind_of_value(rng: random.Random, it: Asked) -> bool:
    path = rng.choice(counted_paths(it.body))
    inner, name = at(it.body, path[:-1]), path[-1]
    inner[name] = [inner[name]] if rng.random() < 0.5 else {"": inner[name]}
    return True


def objects(it: Asked, least: int) -> list[dict[str, Any]]:
    inner = [at(it.body, path) for path in counted_paths(it.body)]
    return [value for value in inner if isinstance(value, dict) and len(value) >= least]


def field_added(rng: random.Random, it: Asked) -> bool:
    rng.choice([it.body, *objects(it, 0)])["field_of_2027"] = rng.choice([None, False, 0, "", [], {}, "x"])
    return True


def field_removed(rng: random.Random, it: Asked) -> bool:
    whole = rng.random() < 0.5
    inner = it.body if whole else rng.choice(objects(it, 1))
    del inner[rng.choice([name for name in inner if not whole or name not in IGNORED_FIELDS])]
    return True


def field_renamed(rng: random.Random, it: Asked) -> bool:
    inner = rng.choice(objects(it, 1))
    name = rng.choice(list(inner))
    new = {longer(rng, name) if old == name else old: value for old, value in inner.items()}
    inner.clear()
    inner.update(new)
    return True


def inner_fields_in_another_order(rng: random.Random, it: Asked) -> bool:
    inner = rng.choice(objects(it, 2) or [{}])
    turned = dict(reversed(inner.items()))
    inner.clear()
    inner.update(turned)
    return bool(inner)


def lists(it: Asked) -> list[list[Any]]:
    inner = [at(it.body, path) for path in counted_paths(it.body)]
    return [value for value in inner if isinstance(value, list)]


def list_in_another_order(rng: random.Random, it: Asked) -> bool:
    longs = [value for value in lists(it) if len(value) > 1 and value[0] != value[-1]]
    if longs:
        chosen = rng.choice(longs)
        chosen[0], chosen[-1] = chosen[-1], chosen[0]
    return bool(longs)


def messages_in_another_order(rng: random.Random, it: Asked) -> bool:
    messages = it.body["messages"]
    before = list(messages)
    rng.shuffle(messages)
    return messages != before


def list_member(rng: random.Random, it: Asked) -> bool:
    chosen = rng.choice(lists(it))
    if chosen and rng.random() < 0.5:
        del chosen[rng.randrange(len(chosen))]
    else:
        chosen.append(copy.deepcopy(rng.choice(chosen)) if chosen else "x")
    return True


def stream_toggled(rng: random.Random, it: Asked) -> bool:
    it.body["stream"] = it.body.get("stream") is not True
    return True


def spaces(rng: random.Random, it: Asked) -> bool:
    it.is_spaced = not it.is_spaced
    return True


def counted_headers(it: Asked) -> list[int]:
    names = {b"anthropic-version", *(name.encode() for name in COUNTED_HEADERS)}
    return [place for place, (name, _) in enumerate(it.headers) if name in names]


def header_value(rng: random.Random, it: Asked) -> bool:
    place = rng.choice(counted_headers(it))
    name, value = it.headers[place]
    it.headers[place] = (name, longer(rng, value.decode()).encode())
    return True


def header_removed(rng: random.Random, it: Asked) -> bool:
    del it.headers[rng.choice(counted_headers(it))]
    return True


def header_added(rng: random.Random, it: Asked) -> bool:
    name = rng.choice(["x-unknown", "anthropic-new", "idempotency-key", "x-stainless", "sec-new", "accepts", "baggage"])
    it.headers.insert(rng.randrange(len(it.headers) + 1), header(name, rng.choice([b"", b"1"])))
    return True


def same_named_headers_in_another_order(rng: random.Random, it: Asked) -> bool:
    places = [place for place, (name, _) in enumerate(it.headers) if name == b"x-unknown"]
    if len(places) < 2 or it.headers[places[0]] == it.headers[places[1]]:
        return False
    one, two = places
    it.headers[one], it.headers[two] = it.headers[two], it.headers[one]
    return True


def beta_added(rng: random.Random, it: Asked) -> bool:
    it.headers.insert(rng.randrange(len(it.headers) + 1), (b"anthropic-beta", rng.choice([b"beta-of-2027", b""])))
    return True


def beta_removed(rng: random.Random, it: Asked) -> bool:
    places = [place for place, (name, _) in enumerate(it.headers) if name == b"anthropic-beta"]
    for place in places:
        betas = it.headers[place][1].split(b",")
        del betas[rng.randrange(len(betas))]
        it.headers[place : place + 1] = [(b"anthropic-beta", b",".join(betas))] if betas else []
    return bool(places)


def query(rng: random.Random, it: Asked) -> bool:
    it.target += rng.choice([b"?", b"&", b"?beta=false", b"&x=1", b"/"])
    return True


def model(rng: random.Random, it: Asked) -> bool:
    it.model = longer(rng, it.model)
    return True


def scope(rng: random.Random, it: Asked) -> bool:
    it.scope = "shared" if rng.random() < 0.3 else "tenant:" + longer(rng, it.scope.removeprefix("tenant:"))
    return True


def secret(rng: random.Random, it: Asked) -> bool:
    it.secret = rng.choice([b"", it.secret + b"\0", it.secret[:-1]])
    return True


CHANGES = (
    leaf, kind_of_value, field_added, field_removed, field_renamed, inner_fields_in_another_order,
    list_in_another_order, messages_in_another_order, list_member, stream_toggled, spaces, header_value,
    header_removed, header_added, same_named_headers_in_another_order, beta_added, beta_removed, query, model, scope,
    secret,
)  # fmt: skip


# Those that change the body are ignored only in a compact one: with white space, all its bytes but the model's count.


def fields_in_another_order(rng: random.Random, it: Asked) -> bool:
    names = list(it.body)
    rng.shuffle(names)
    it.body = {name: it.body[name] for name in names}
    return not it.is_spaced


def model_asked(rng: random.Random, it: Asked) -> bool:
    it.body["model"] = rng.choice(["lane:small", "claude-fable-5-2", "é"])
    return True


def user(rng: random.Random, it: Asked) -> bool:
    it.body["metadata"] = rng.choice([{"user_id": word(rng)}, {"user_id": None}, {}])
    return not it.is_spaced


def no_stream_said_otherwise(rng: random.Random, it: Asked) -> bool:
    if it.is_spaced or it.body.get("stream") is True:
        return False
    it.body.pop("stream", None)
    it.body |= rng.choice([{}, {"stream": None}, {"stream": False}])
    return True


def billing_digits(rng: random.Random, it: Asked) -> bool:
    blocks = it.body.get("system")
    if it.is_spaced or not isinstance(blocks, list) or not blocks[0]["text"].startswith("x-anthropic"):
        return False
    blocks[0]["text"] = BILLING.replace("a1b", f"{rng.randrange(4096):03x}")
    return True


def ignored_header(rng: random.Random, it: Asked) -> bool:
    name = rng.choice([*IGNORED_HEADERS, *(prefix + word(rng) for prefix in IGNORED_HEADER_PREFIXES)])
    it.headers.insert(rng.randrange(len(it.headers) + 1), header(name, word(rng).encode()))
    return True


def ignored_headers_removed(rng: random.Random, it: Asked) -> bool:
    it.headers = [pair for pair in it.headers if pair[0].decode() not in IGNORED_HEADERS]
    return True


def headers_in_another_order(rng: random.Random, it: Asked) -> bool:
    unknown = iter([pair for pair in it.headers if pair[0] == b"x-unknown"])
    rng.shuffle(it.headers)
    it.headers = [next(unknown) if pair[0] == b"x-unknown" else pair for pair in it.headers]
    return True


def betas_spelled_otherwise(rng: random.Random, it: Asked) -> bool:
    betas = [beta for name, value in it.headers if name == b"anthropic-beta" for beta in value.split(b",")]
    if not betas:
        return False
    it.headers = [pair for pair in it.headers if pair[0] != b"anthropic-beta"]
    betas.append(rng.choice(betas))
    rng.shuffle(betas)
    cut = rng.randrange(1, len(betas))
    for part in (betas[:cut], betas[cut:]):
        it.headers.insert(
            rng.randrange(len(it.headers) + 1), (b"anthropic-beta", rng.choice([b",", b" ,\t"]).join(part))
        )
    return True


IGNORED_CHANGES = (
    fields_in_another_order, model_asked, user, no_stream_said_otherwise, billing_digits, ignored_header,
    ignored_headers_removed, headers_in_another_order, betas_spelled_otherwise,
)  # fmt: skip


def changed(
    rng: random.Random, before: Asked, kinds: tuple[Callable[[random.Random, Asked], bool], ...]
) -> tuple[str, str]:
    """The name of one change that could be made, and the key after it."""
    while True:
        after = dataclasses.replace(before, body=copy.deepcopy(before.body), headers=list(before.headers))
        kind = rng.choice(kinds)
        if kind(rng, after):
            try:
                return kind.__name__, after.key()
            except InvalidRequest:  # the change left no request; another is drawn
                continue


@pytest.mark.parametrize("part", range(4))
def test_any_one_change_of_any_input_changes_the_key_unless_it_is_ignored(part):
    """Over 10,000 pairs of realistic requests: another key exactly when the change is not on a list (S5)."""
    rng = random.Random(f"pairs {part}")
    done, wrong = Counter(), Counter()
    for _ in range(PAIRS // 4):
        before = asked(rng)
        found = before.key()
        for kinds in (CHANGES, IGNORED_CHANGES):
            name, other = changed(rng, before, kinds)
            done[name] += 1
            wrong[name] += (other == found) == (kinds is CHANGES)
    counts = f"{PAIRS // 4} pairs that count and as many that do not: {dict(done)}"
    print(counts)
    assert not +wrong, f"wrong keys: {dict(+wrong)} of {counts}"
    assert {kind.__name__ for kind in (*CHANGES, *IGNORED_CHANGES)} == set(done), counts
    assert min(done.values()) >= 20, counts


def test_two_tenants_never_share_a_key():
    """10,000 requests, each asked by two tenants and in the shared scope: not one key in common (S5)."""
    rng = random.Random("tenants")
    found: dict[str, set[str]] = {"tenant:a": set(), "tenant:b": set(), "shared": set()}
    for _ in range(PAIRS):
        it = asked(rng)
        request = it.request()
        for scope, keys in found.items():
            keys.add(cache_key(request, scope=scope, model=it.model, target=it.target, headers=it.headers))
    sizes = {scope: len(keys) for scope, keys in found.items()}
    shared = sum(sizes.values()) - len(set().union(*found.values()))
    print(f"keys: {sizes}, in common: {shared}")
    assert shared == 0, f"{shared} keys in common of {sizes}"
    assert min(sizes.values()) > PAIRS * 0.99, f"the requests are too much alike: {sizes}"
