"""The capture file: what is taken out, what is cut, what is dropped, and that nothing outlives its time."""

from __future__ import annotations

import json
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import SettingsError
from router.trace.capture import Capture, read_content
from router.trace.capture_redact import BUILT_IN, DEFAULT, MARGIN, clean, read_rules
from router.trace.capture_stream import is_stream, joined
from router.trace.captured import Content, Kept

START_NS = 1_790_000_000_000_000_000
DAY_NS = 86_400 * 10**9
RULES = read_rules(DEFAULT)
ALL = 1 << 30
SECRETS = {
    "credentials": [
        "sk-ant-api03-abcdefghijkl", "AKIAABCDEFGHIJKLMNOP", "ghp_abcdefghijklmnopqrst", "xoxb-1234567890-abc",
        "AIzaSyA1234567890abcdefghijklmnopqrstu", "eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJ",
        "SG.abcdefghijklmnopqrstuv.abcdefghijklmnopqrstuv", "hf_abcdefghijklmnopqrstuvwx",
    ],
    "email": ["jane.doe+tag@example.co.uk", "ünï@exämple.de"],
    "card": ["4111111111111111", "4111 1111 1111 1111", "3782-822463-10005"],
    "phone": ["+49 151 23456789", "+1 (415) 555-2671", "415-555-2671", "(415) 555-2671"],
}  # fmt: skip
EACH = [(name, secret) for name, secrets in SECRETS.items() for secret in secrets]


def content(number: int = 0, request: bytes = b"{}", *answer: bytes, **fields: object) -> Content:
    """A finished request."""
    made = {
        "trace_id": f"{number:032x}",
        "started_at_ns": START_NS,
        "is_error": False,
        "answer_bytes": sum(map(len, answer)),
    }
    return Content(**{**made, "request": request, "answer": answer, **fields})


@contextmanager
def capturing(path: Path, **settings: object) -> Iterator[Capture]:
    capture = Capture(path, **{"share": 1.0, "rules": RULES, "now_ns": lambda: START_NS, **settings})
    try:
        yield capture
    finally:
        capture.close()


def one(path: Path, number: int = 0) -> dict:
    """The one content under that trace id."""
    (found,) = read_content(path, f"{number:032x}")
    return found


def is_in_files(path: Path, secret: str) -> bool:
    """Whether the bytes are in the file or its journal, free pages included."""
    return any(secret.encode() in file.read_bytes() for file in path.parent.glob(f"{path.name}*"))


@pytest.mark.parametrize(("name", "secret"), EACH)
def test_each_built_in_rule_takes_out_its_kind(name: str, secret: str):
    """In prose and in JSON; what stands around it stays."""
    rules = read_rules(name)
    for before, after in (("call ", " now"), ('{"x": "', '"}'), ("", "")):
        assert (
            clean(f"{before}{secret}{after}".encode(), rules, ALL).text.decode() == f"{before}[redacted:{name}]{after}"
        )


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{"password": "hunter2!"}', '{"password": "[redacted:credentials]"}'),
        ("db_password=hunter2!;", "db_password=[redacted:credentials];"),
        ("Authorization: Bearer abcdefghijklmnop", "Authorization: Bearer [redacted:credentials]"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: Basic [redacted:credentials]"),
        ("postgres://joe:hunter2@db/x", "postgres://joe:[redacted:credentials]@db/x"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY----- x", "[redacted:credentials] x"),
        ("-----BEGIN PRIVATE KEY-----\nabc", "[redacted:credentials]"),
        ('{"max_tokens": 1024, "input_tokens": 123456}', '{"max_tokens": 1024, "input_tokens": 123456}'),
        ('{"password": "p@ss(w0rd)longsecret"}', '{"password": "[redacted:credentials]"}'),
        ("password: p@ss(w0rd)longsecret.", "password: [redacted:credentials]"),
        ('{"secret": "a b \\" c d", "x": 1}', '{"secret": "[redacted:credentials]", "x": 1}'),
        ("token='correct horse' x", "token='[redacted:credentials]' x"),
        ("postgres://joe:pa/ss@db/x", "postgres://joe:[redacted:credentials]@db/x"),
        ("http://localhost:8080/path/a@b", "http://localhost:8080/path/a@b"),
        ("Cookie: session=abcdef; b=c\nX: y", "Cookie: [redacted:credentials]\nX: y"),
        ("Authorization: token abcdefgh123", "Authorization: token [redacted:credentials]"),
        ("AccountName=x;AccountKey=abc/def+gh==;End", "AccountName=x;AccountKey=[redacted:credentials];End"),
        ('{"name":"DB_PASSWORD","value":"a long one"}', '{"name":"DB_PASSWORD","value":"[redacted:credentials]"}'),
        ('{"value":"a long one","name":"password"}', '{"value":"[redacted:credentials]","name":"password"}'),
        ("a basic understanding of tokens and passwords", "a basic understanding of tokens and passwords"),
        ("version 10.20.30, 2026-11-22T14:49:25", "version 10.20.30, 2026-11-22T14:49:25"),
    ],
)  # fmt: skip
def test_what_is_a_secret_by_its_name_goes_and_ordinary_words_stay(text: str, kept: str):
    """Only the value goes, so that a reader still sees what it was."""
    assert clean(text.encode(), RULES, ALL).text.decode() == kept


ESCAPES: dict[str, Callable[[str], str]] = {
    "plain": lambda text: text,
    "JSON": json.dumps,
    "JSON in JSON": lambda text: json.dumps(json.dumps(text)),
    "three deep": lambda text: json.dumps(json.dumps(json.dumps(text))),
    "every character escaped": lambda text: '"' + "".join(f"\\u{ord(c):04x}" for c in text) + '"',
    "one escaped": lambda text: '"' + text.replace(text[3], f"\\u{ord(text[3]):04X}") + '"',
}


@pytest.mark.parametrize("form", ESCAPES)
@pytest.mark.parametrize(("name", "secret"), EACH)
def test_escapes_hide_no_secret(form: str, name: str, secret: str):
    """`\\u0040` is an `@` to whoever reads the JSON."""
    text = ESCAPES[form](secret)
    found = clean(b'{"a\\n": ' + text.encode() + b', "b": "\\t"}', read_rules(name), ALL).text
    layers = found.decode()
    for _ in range(4):
        assert secret not in layers
        layers = layers.encode().decode("unicode_escape", "replace")
    assert found.endswith(b', "b": "\\t"}')
    assert b"[redacted:" in found


@given(st.binary(max_size=300), st.integers(0, 300))
def test_any_bytes_are_taken_and_cut_where_they_are_to_be(data: bytes, limit: int):
    """Without a find, what is kept is what was there, up to the limit."""
    cleaned = clean(data, (), limit)
    assert (cleaned.text, cleaned.is_cut, cleaned.found) == (data[:limit], len(data) > limit, 0)


@given(st.integers(0, 40), st.sampled_from(EACH))
def test_a_secret_across_the_cut_is_taken_out_whole(limit: int, each: tuple[str, str]):
    """Half a secret is one too many."""
    name, secret = each
    before = b"so it is: "
    kept = clean(before + secret.encode() + b" and more", read_rules(name), limit).text
    mark = before + f"[redacted:{name}]".encode()
    assert kept.startswith(mark) if limit > len(before) else kept == before[:limit]
    assert secret.encode()[:6] not in kept


def test_a_credential_of_the_request_goes_without_a_rule():
    """Whatever it looks like; a short one would take words along."""
    text = b'{"x": "my pass phrase/9", "y": "my pass phrase\\/9"}'
    cleaned = clean(text, (), ALL, (b"my pass phrase/9", b"my"))
    assert (cleaned.text, cleaned.found) == (b'{"x": "[redacted:credentials]", "y": "[redacted:credentials]"}', 2)


def test_a_rule_of_ones_own_may_name_a_part():
    """With a group only its match goes."""
    rules = read_rules('["credentials", "ACME-[0-9]{6}", "account ([0-9]+)"]')
    assert clean(b"ACME-123456, account 77.", rules, ALL).text == b"[redacted:own], account [redacted:own]."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("credental", "did you mean `credentials`?"), ("ACME-[0-9]+", "JSON list"), ('["(a"]', "no regex"),
        ('["a(?=b)"]', "no regex"), ('["x*"]', "no text at all"), ('["emial"]', "(?:emial)"), ("[1]", "JSON list"),
        ("[", "JSON list"), ("", "built-in"), ("email,,card", "built-in"), (json.dumps(["a"] * 101), "at most 100"),
    ],
)  # fmt: skip
def test_a_broken_rule_is_refused(text: str, said: str):
    """With what is wrong; a rule that silently takes out nothing would be found out too late."""
    with pytest.raises(SettingsError) as caught:
        read_rules(text)
    assert said in caught.value.message + caught.value.hint


def test_no_rules_is_a_choice():
    """`off` says it."""
    assert read_rules("off") == ()
    assert [rule.name for rule in read_rules(DEFAULT)] == list(BUILT_IN)


def test_a_hostile_body_is_cleaned_in_time():
    """Linear rules: 68 kB of what makes other engines stumble."""
    for piece in (
        b"a@",
        b"1 ",
        b"\\\\",
        b"-----BEGIN PRIVATE KEY-----",
        b"password=",
        b"aaaa.",
        b"+1",
        b'\\"',
        b"://:",
        b'password="',
        b'"value":"',
        b"a://u:x/sk-aaaaaaaaa",
        b"cookie: a=bbbbb ",
    ):
        clean(piece * (70_000 // len(piece)), RULES, 64 * 1024)


def delta(text: str, index: int = 0, kind: str = "text_delta", name: str = "text") -> bytes:
    data = {"type": "content_block_delta", "index": index, "delta": {"type": kind, name: text}}
    return f"event: content_block_delta\ndata: {json.dumps(data)}\n\n".encode()


BETWEEN = [
    b"event: ping\ndata: {}\n\n",
    b'event:ping\ndata:{"type":"ping"}\n\n',
    b'data: {"type": "ping"}\r\n\r\n',
    b": still here\n\n",
    b"event: news\ndata: {}\n\n",
    b'data: {"type":"content_block_delta","index":0,"delta":{"type":"citations_delta","citation":{}}}\n\n',
]


@given(st.lists(st.integers(1, 5), max_size=12), st.sampled_from(EACH), st.sampled_from(BETWEEN))
def test_a_secret_in_pieces_of_a_stream_is_seen_whole(cuts: list[int], each: tuple[str, str], between: bytes):
    """However the deltas fall, whatever stands between them."""
    name, secret = each
    pieces, rest = [], f"it is {secret} ok"
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    stream = between.join(delta(piece) for piece in [*pieces, rest])
    assert is_stream(stream)
    kept = clean(joined(stream), read_rules(name), ALL).text
    assert b"ping" not in kept
    (line,) = [line for line in kept.decode().splitlines() if "text_delta" in line]
    assert json.loads(line[5:])["delta"]["text"] == f"it is [redacted:{name}] ok"


def test_joining_keeps_what_is_no_delta_of_the_block():
    """Blocks stay apart, other events in order and broken frames as they are, before the text that they were in."""
    start = b"event: content_block_start\ndata: {}\n\n"
    broken = b"event: content_block_delta\ndata: {broken\n\n"
    cited = b'{"type":"content_block_delta","index":0,"delta":{"type":"citations_delta"}}'
    other = b"event: content_block_delta\ndata: " + cited + b"\n\n"
    stream = (
        start
        + delta("a")
        + delta("b")
        + broken
        + delta("c")
        + other
        + delta("{", 1, "input_json_delta", "partial_json")
    )
    stream += delta("}", 1, "input_json_delta", "partial_json")
    events = joined(stream).split(b"\n\n")[:-1]
    assert events[0] + b"\n\n" == start
    assert events[1] + b"\n\n" == broken
    assert events[2] + b"\n\n" == other
    texts = [json.loads(each.split(b"data: ")[1])["delta"] for each in events[3:]]
    assert [text.get("text", text.get("partial_json")) for text in texts] == ["abc", "{}"]


def test_a_block_that_stops_stands_where_it_stops():
    """What has the same number later is another block."""
    stop = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
    events = joined(delta("a") + delta("b") + stop + delta("c") + stop).split(b"\n\n")[:-1]
    assert [events[1] + b"\n\n", events[3] + b"\n\n"] == [stop, stop]
    assert [json.loads(events[at].split(b"data: ")[1])["delta"]["text"] for at in (0, 2)] == ["ab", "c"]


def test_half_an_event_at_the_end_is_left_out():
    """It may be the second half of a secret, in a form that joins with nothing."""
    assert joined(delta("sk-") + delta("abcdefghijkl")[:-20]) == joined(delta("sk-"))


def test_what_was_said_is_kept_with_its_size(tmp_path: Path):
    """Bodies as text, cut by the rule and marked; the file is its owner's."""
    path = tmp_path / "c.db"
    with capturing(path, max_bytes=1024) as capture:
        capture.write(content(1, b"x" * 1000, b"y" * 600, b"z" * 600))
        capture.write(content(2, b"x" * 100_000, b"caf\xc3\xa9 \xff"))
        assert capture.flush()
        first, second = one(path, 1), one(path, 2)
    assert (first["request"], first["request_bytes"], first["request_is_cut"]) == ("x" * 1000, 1000, False)
    assert (first["answer"], first["answer_bytes"], first["answer_is_cut"]) == ("y" * 600 + "z" * 424, 1200, True)
    assert (second["request"], second["request_bytes"], second["request_is_cut"]) == ("x" * 1024, 100_000, True)
    assert second["answer"] == "café \ufffd"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_is_relayed_beyond_the_room_is_only_counted():
    """References are held for what may be kept, not for all that passes."""
    kept = Kept(10)
    for chunk in (b"123456", b"123456", b"123456"):
        kept.add(chunk)
    assert (kept.chunks, kept.bytes) == ([b"123456", b"1234"], 18)


def test_an_answer_whose_end_was_not_held_loses_what_might_be_half_a_secret(tmp_path: Path):
    """The bytes before the place where it was left are not trusted."""
    path = tmp_path / "c.db"
    with capturing(path) as capture:
        capture.write(content(1, b"{}", b"a" * 10_000 + b" sk-a", answer_bytes=20_000))
        assert capture.flush()
        found = one(path, 1)
    assert (found["answer"], found["answer_is_cut"]) == ("a" * (10_005 - MARGIN), True)


def test_no_secret_reaches_the_file(tmp_path: Path):
    """Not the file, not its journal, whatever form it came in."""
    path = tmp_path / "c.db"
    secrets = [secret for _, secret in EACH]
    with capturing(path) as capture:
        for number, secret in enumerate(secrets):
            body = json.dumps({"messages": [{"role": "user", "content": f"it is {secret}"}]}).encode()
            answer = b"".join(delta(char) for char in secret)
            capture.write(content(number, body, answer))
        assert capture.flush()
        assert capture.stats()["stored"] == len(secrets)
        assert capture.stats()["redacted"] >= 2 * len(secrets)
        assert not [secret for secret in secrets if is_in_files(path, secret)]
        assert not [secret for secret in secrets if is_in_files(path, json.dumps(secret)[1:-1])]


def test_content_is_gone_when_its_time_is_over(tmp_path: Path):
    """Not only from the table: from the pages and the journal too; what is younger stays."""
    path = tmp_path / "c.db"
    now_ns = START_NS
    with capturing(path, keep_s=86_400, now_ns=lambda: now_ns) as capture:
        capture.write(content(1, b"canary-old " * 2_000))
        capture.write(content(2, b"canary-young", started_at_ns=START_NS + DAY_NS))
        assert capture.flush()
        assert is_in_files(path, "canary-old")
    now_ns = START_NS + DAY_NS + 1
    with capturing(path, keep_s=86_400, share=0.0, now_ns=lambda: now_ns) as capture:  # while it is off, too
        assert capture.flush()
        assert capture.stats()["pruned"] == 1
        assert not is_in_files(path, "canary-old")
        assert one(path, 2)["request"] == "canary-young"
        assert read_content(path, f"{1:032x}") == []


@pytest.mark.parametrize("is_closed_first", [False, True])
def test_a_reader_only_delays_that_deleted_content_leaves_the_journal(tmp_path: Path, is_closed_first: bool):
    """Emptying it is tried again when the reader is gone: on closing, or by the next process that opens the file."""
    path = tmp_path / "c.db"
    now_ns = START_NS
    with capturing(path, keep_s=86_400, now_ns=lambda: now_ns) as capture, closing(sqlite3.connect(path)) as other:
        capture.write(content(1, b"canary-old " * 2_000))
        assert capture.flush()
        other.execute("SELECT count(*) FROM content").fetchall()  # or the last to close would empty it
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM content").fetchall()
            now_ns = START_NS + DAY_NS + 1
            capture._prune_at = 0.0
            assert capture.flush(10)
            assert capture.stats()["pruned"] == 1
            assert is_in_files(path, "canary-old")
            if is_closed_first:
                capture.close()
        if is_closed_first:
            with capturing(path, share=0.0) as following:
                assert following.flush(10)
                assert not is_in_files(path, "canary-old")
        else:
            capture.close()
            assert not is_in_files(path, "canary-old")


def test_the_rights_of_a_file_that_others_could_read_are_narrowed(tmp_path: Path):
    """It may come from a copy or an older program; its journal too."""
    path = tmp_path / "c.db"
    with capturing(path) as capture, closing(sqlite3.connect(path)) as other:
        capture.write(content(1, b"canary"))
        assert capture.flush()
        other.execute("SELECT * FROM content").fetchall()
        for file in tmp_path.glob("c.db*"):
            file.chmod(0o644)
        with capturing(path) as following:
            assert following.flush()
            assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.glob("c.db*")} == {0o600}
            assert len(list(tmp_path.glob("c.db*"))) == 3


def test_a_full_queue_drops_and_counts(tmp_path: Path):
    """By number and by bytes; nobody waits for room."""
    path = tmp_path / "c.db"
    with closing(sqlite3.connect(path)) as holder, capturing(path, queue_max=5, queue_max_bytes=10_000) as capture:
        assert capture.flush()
        holder.execute("CREATE TABLE held (x)")
        holder.execute("BEGIN EXCLUSIVE")
        for number in range(200):
            capture.write(content(number, b"x" * 300))
        capture.write(content(201, b"x" * 9_000, b"y" * 9_000))
        stats = capture.stats()
        assert stats["dropped"] >= 201 - 5 - 50 - 5  # a batch may be with the writer already
        holder.rollback()
        holder.execute("DROP TABLE held")
        holder.commit()
        assert capture.flush(10)
        stats = capture.stats()
        assert stats["stored"] + stats["dropped"] == 201
        assert stats["queued"] == 0


def test_content_that_cannot_be_cleaned_is_not_written(tmp_path: Path):
    """A bug in a rule costs the content, never the rule."""

    class Broken:
        groups = 0

        def finditer(self, text: bytes) -> Iterator[object]:
            raise RuntimeError("no")

    path = tmp_path / "c.db"
    rule = type(RULES[0])("broken", Broken())
    with capturing(path, rules=(rule,)) as capture:
        capture.write(content(1, b"canary"))
        assert capture.flush()
        assert capture.stats()["failed"] == 1
    assert not path.exists() or read_content(path, f"{1:032x}") == []


def test_a_file_that_is_no_database_is_left_alone_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Setting it aside would take what it holds out of the retention; the log names the file, once."""
    path = tmp_path / "c.db"
    path.write_bytes(b"not a database " * 1000)
    with capturing(path) as capture:
        capture.write(content(1, b"canary"))
        assert not capture.flush(0.5)
    assert path.read_bytes() == b"not a database " * 1000
    assert [record.message for record in caplog.records if str(path) in record.message]
    assert "canary" not in caplog.text


@pytest.mark.parametrize(
    ("share", "low", "high"), [(0.0, 0, 0), (0.01, 50, 150), (0.5, 4_800, 5_200), (1.0, 10_000, 10_000)]
)
def test_a_share_of_the_traces_is_kept(tmp_path: Path, share: float, low: int, high: int):
    """Decided by the trace id, so that every process decides the same."""
    with capturing(tmp_path / "c.db", share=share) as capture:
        ids = (f"{number * 0x9E3779B97F4A7C15 % 2**128:032x}" for number in range(10_000))
        kept = sum(capture.room(each) > 0 for each in ids)
    assert low <= kept <= high
    assert share > 0 or not (tmp_path / "c.db").exists()


def test_errors_only_keeps_what_did_not_end_well(tmp_path: Path):
    """The rest is let go without being looked at."""
    path = tmp_path / "c.db"
    with capturing(path, is_errors_only=True) as capture:
        capture.write(content(1, b"good"))
        capture.write(content(2, b"bad", is_error=True))
        assert capture.flush()
        assert (read_content(path, f"{1:032x}"), one(path, 2)["request"]) == ([], "bad")


def test_closing_twice_and_writing_after_it_harms_nothing(tmp_path: Path):
    """What comes too late is dropped and counted."""
    with capturing(tmp_path / "c.db") as capture:
        capture.close()
        capture.write(content(1))
        assert capture.stats()["dropped"] == 1
    assert "router-capture" not in [thread.name for thread in threading.enumerate()]


def test_a_step_that_takes_too_long_is_interrupted_and_what_it_leaves_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """F79: `close` keeps its time, and no content is neither stored nor counted nor said."""
    path = tmp_path / "c.db"
    with capturing(path) as capture:
        assert capture.flush()
        capture.write(content(0))
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE many AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)"
            " SELECT i FROM n; CREATE TRIGGER slow AFTER INSERT ON content"
            " BEGIN SELECT count(*) FROM many a, many b, many c WHERE a.i + b.i = c.i; END;"
        )
    monkeypatch.setattr("router.trace.capture.CLOSE_S", 1.5)
    with capturing(path) as capture:
        for number in range(3):
            capture.write(content(number))
    assert (capture.stats()["stored"], capture.stats()["dropped"]) == (0, 3)
    assert not capture._thread.is_alive()
    assert "closed with 3 contents" in caplog.text
