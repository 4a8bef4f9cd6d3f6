"""Facts: what inspection knows of a request, the vocabulary of policy conditions.

`inspect()` walks the body once and keeps counts, never text. Two facts need the words themselves (`code_share` and
`language`); they are worked out when first read, from bounded edges of the text, and remembered. A field of an odd type
is an absent field: no request can make inspection fail. An absent fact is None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from router.facts.identity import SESSION_HEADER, conversation_key, first_turn_key, session_key
from router.facts.language import code_share, language_of, last_user_text
from router.facts.vocabulary import FACTS, HEADER_PREFIX, LABEL_FACTS, MASKED, SECRET_HEADERS, may_hold_secret
from router.value import value_class

if TYPE_CHECKING:
    from router.catalog.lookup import Catalog
    from router.wire.messages import MessagesRequest

JSON = str | int | float | bool | None | list[Any] | dict[str, Any]
# Bytes of UTF-8 text per token, a rough calibration on English prose and code; families as `models.yaml` names them
# ("2026" makes about 30 % more tokens of the same text). Source: API sheet, section 1, "Tokenizer".
_BYTES_PER_TOKEN = {"2024": 3.5, "2026": 2.7}
_TOKENS_PER_MESSAGE = 4
_TOKENS_PER_IMAGE = 1600  # about 1,100 x 1,100 pixels; the API counts ceil(w/28) x ceil(h/28)
_TOKENS_PER_PAGE = 2000  # a PDF page is billed as text and as an image
_BYTES_PER_PAGE = 75_000  # of base64: an ordinary text page with a figure
_TOKENS_FOR_TOOLS = 350  # the hidden prompt that comes with any tool
_EDGE_CHARS = 2000  # how much of each end of a text the reading facts look at
RECORDED_CHARS = 100  # how much of a text that the client chose enters a trace, and of how many in a list
RECORDED_ITEMS = 50
_THINKING = frozenset({None, *FACTS["thinking"].values})
_EFFORT = frozenset({None, *FACTS["effort"].values})


@value_class(frozen=True, slots=True)
class Caller:
    """What is known of a request besides its body. `headers` have lower-case names; `hour` and `weekday` are UTC."""

    tenant: str = ""
    key: str = ""
    policy: str = "default"
    headers: Mapping[str, str] = field(default_factory=dict)
    api_version: str = ""
    betas: tuple[str, ...] = ()
    hour: int = 0
    weekday: str = "mon"  # one of `vocabulary.WEEKDAYS`


@dataclass(slots=True)
class Facts:
    """The facts of one request; see FACTS for what each means. Built once by `inspect()`, then only read.

    Not frozen because the two reading facts and the key are remembered once worked out; nothing else is ever assigned.
    """

    requested_model: str = ""
    requested_line: str | None = None
    input_tokens: int = 0
    max_tokens: int | None = None
    messages: int = 1
    turns: int = 1
    stream: bool = False
    tools: int = 0
    tool_names: tuple[str, ...] = ()
    forced_tool: bool = False
    structured_output: bool = False
    images: int = 0
    documents: int = 0
    thinking: str | None = None
    effort: str | None = None
    system_chars: int = 0
    in_tool_loop: bool = False
    conversation: str = "new"
    client: str = "other"
    request_class: str | None = None
    user: str | None = None
    tenant: str = ""
    key: str = ""
    policy: str = "default"
    betas: tuple[str, ...] = ()
    hour: int = 0
    weekday: str = "mon"
    headers: Mapping[str, str] = field(default_factory=dict)
    _body: Mapping[str, Any] = field(default_factory=dict)
    _code_share: float | None = None
    _language: str | None = None
    _has_language: bool = False
    _conversation_key: str | None = None

    @property
    def code_share(self) -> float:
        """Share of the last user text's lines that look like program code, 0 to 1."""
        if self._code_share is None:
            self._code_share = code_share(last_user_text(self._body, _EDGE_CHARS))
        return self._code_share

    @property
    def language(self) -> str | None:
        """Language of the last user text (ISO 639-1), or None when it cannot be told."""
        if not self._has_language:
            self._language = language_of(last_user_text(self._body, _EDGE_CHARS))
            self._has_language = True
        return self._language

    @property
    def conversation_key(self) -> str:
        """32 hex digits that stay the same while a conversation goes on: for `split`, `stick` and the trace.

        The client's session header where it sends one (with its sub-agent, which is a conversation of its own), else
        system prompt, tool names and first user turn; always within one tenant.
        """
        if self._conversation_key is None:
            self._conversation_key = conversation_key(self.tenant, self.headers, self.tool_names, self._body)
        return self._conversation_key

    @property
    def session_turn_key(self) -> str | None:
        """What tells the conversations of one session apart; None where the client names no session."""
        return first_turn_key(self._body) if self.headers.get(SESSION_HEADER) else None

    @property
    def session_key(self) -> str | None:
        """What the trace calls the client's session; None where the client names none."""
        session = self.headers.get(SESSION_HEADER)
        return session_key(self.tenant, session) if session else None

    def get(self, name: str) -> Any:
        """The value of a fact by name; None when it is absent, unknown, or a label."""
        if name.startswith(HEADER_PREFIX):
            return self.headers.get(name[len(HEADER_PREFIX) :])
        return getattr(self, name) if name in FACTS and name not in LABEL_FACTS else None

    def recorded(self, headers: Iterable[str] = ()) -> dict[str, JSON]:
        """The facts as plain JSON for a trace: no text of the request, the user as a hash.

        Reading facts appear when some rule read them; of the headers only `headers`, the names that a rule reads, with
        None for one that the request does not have: what is not in the record is unknown, what is None is absent. What
        the client words itself is cut to `RECORDED_CHARS`, lists to `RECORDED_ITEMS`; `thinking` and `effort` are
        values of the API or `other`.
        """
        record: dict[str, JSON] = {  # spelled out: once per request, and half the cost of a loop over the names
            "requested_model": self.requested_model[:RECORDED_CHARS],
            "requested_line": self.requested_line,
            "input_tokens": self.input_tokens,
            "max_tokens": self.max_tokens,
            "messages": self.messages,
            "turns": self.turns,
            "stream": self.stream,
            "tools": self.tools,
            "tool_names": [name[:RECORDED_CHARS] for name in self.tool_names[:RECORDED_ITEMS]],
            "forced_tool": self.forced_tool,
            "structured_output": self.structured_output,
            "images": self.images,
            "documents": self.documents,
            "thinking": self.thinking if self.thinking in _THINKING else "other",
            "effort": self.effort if self.effort in _EFFORT else "other",
            "system_chars": self.system_chars,
            "in_tool_loop": self.in_tool_loop,
            "conversation": self.conversation,
            "client": self.client,
            "request_class": None if self.request_class is None else self.request_class[:RECORDED_CHARS],
            "tenant": self.tenant,
            "key": self.key,
            "policy": self.policy,
            "betas": [beta[:RECORDED_CHARS] for beta in self.betas[:RECORDED_ITEMS]],
            "hour": self.hour,
            "weekday": self.weekday,
        }
        if self.user is not None:
            record["user"] = recorded_user(self.user)
        if self._code_share is not None:
            record["code_share"] = round(self._code_share, 4)
        if self._has_language:
            record["language"] = self._language
        for name in headers:
            if name not in SECRET_HEADERS:
                value = self.headers.get(name)
                if value and name == SESSION_HEADER:
                    value = recorded_user(value)  # nobody who reads traces is to meet the id of a session
                elif value and may_hold_secret(name):
                    value = MASKED
                record[HEADER_PREFIX + name] = None if value is None else value[:RECORDED_CHARS]
        return record

    @classmethod
    def given(cls, values: Mapping[str, Any]) -> Facts:
        """Facts from named values, as a policy test or a trace gives them; what is not named has its resting value.

        Labels are not facts of the request and are passed over; an unknown name raises KeyError.
        """
        plain: dict[str, Any] = {}
        headers: dict[str, str] = {}
        for name, value in values.items():
            if name.startswith(HEADER_PREFIX):
                if value is not None:
                    headers[name[len(HEADER_PREFIX) :]] = value
            elif name == "code_share":
                plain["_code_share"] = value
            elif name == "language":
                plain["_language"], plain["_has_language"] = value, True
            elif name in _COUNTED or name == "user":
                plain[name] = tuple(value) if isinstance(value, list) else value
            elif name not in LABEL_FACTS:
                raise KeyError(name)
        facts = cls(**plain)
        facts.headers = headers
        return facts


def recorded_user(user: str) -> str:
    """How a trace names a user: a hash, the same for the same `metadata.user_id`."""
    return "hash-" + blake2b(user.encode("utf-8", "replace"), digest_size=8).hexdigest()


_COUNTED = tuple(f.name for f in fields(Facts) if f.name in FACTS and f.name != "user")


def inspect(request: MessagesRequest, caller: Caller, catalog: Catalog) -> Facts:
    """The facts of one request, from one pass over its body; microseconds for an ordinary one.

    `input_tokens` is an estimate: UTF-8 bytes over the bytes per token of the asked model's tokenizer, constants for
    images and pages. There is no public tokenizer; `count_tokens` is exact and costs a round trip.
    """
    body = request.body
    headers = caller.headers
    facts = Facts()
    facts._body = body
    facts.headers = headers
    facts.requested_model = request.model
    model = catalog.find(request.model)
    family = "2026"
    if model is not None:
        facts.requested_line = model.line
        family = model.tokenizer
    facts.stream = request.is_streaming
    facts.tenant = caller.tenant
    facts.key = caller.key
    facts.policy = caller.policy
    facts.betas = caller.betas
    facts.hour = caller.hour
    facts.weekday = caller.weekday
    facts.client = client_family(headers.get("user-agent", ""))
    facts.request_class = headers.get("x-claude-code-request-class") or (
        "subagent" if "x-claude-code-agent-id" in headers else None
    )

    count = _Count()
    system = body.get("system")
    if system is not None:
        count.content(system)
        facts.system_chars = count.chars
    turns = answers = total = 0
    is_result = False
    for message in body["messages"]:
        total += 1
        role = message.get("role")
        content = message.get("content")
        if type(content) is str:
            count.text(content)
            is_answer = False
        else:
            is_answer = count.content(content)
        if role == "user":
            is_result = is_answer
            if not is_answer:
                turns += 1
        elif role == "assistant":  # a system message in between changes nothing
            is_result = False
            answers += 1
    facts.in_tool_loop = is_result
    facts.messages = total
    facts.turns = turns
    facts.conversation = "new" if turns <= 1 and not answers else "warm"
    facts.images = count.images
    facts.documents = count.documents

    tools = body.get("tools")
    overhead = total * _TOKENS_PER_MESSAGE
    if type(tools) is list and tools:
        facts.tools = len(tools)
        facts.tool_names = tuple([t["name"] for t in tools if type(t) is dict and type(t.get("name")) is str])
        overhead += _TOKENS_FOR_TOOLS
        count.is_structured = True
        choice = body.get("tool_choice")
        facts.forced_tool = type(choice) is dict and choice.get("type") in ("any", "tool")
    if count.is_structured:
        # Tool definitions, calls and results are JSON: everything in the body that is not base64 counts.
        count.bytes = max(count.bytes, len(request.raw) - count.opaque_bytes)
    facts.input_tokens = overhead + count.tokens + int(count.bytes / _BYTES_PER_TOKEN.get(family, 2.7))

    max_tokens = body.get("max_tokens")
    facts.max_tokens = max_tokens if type(max_tokens) is int else None
    facts.thinking = _text_field(body.get("thinking"), "type")
    output = body.get("output_config")
    if type(output) is dict:
        facts.effort = _text_field(output, "effort")
        facts.structured_output = output.get("format") is not None
    if body.get("output_format") is not None:  # the beta spelling
        facts.structured_output = True
    facts.user = _text_field(body.get("metadata"), "user_id")
    return facts


class _Count:
    """Running totals of one pass over system and messages."""

    __slots__ = ("bytes", "chars", "documents", "images", "is_structured", "opaque_bytes", "tokens")

    def __init__(self) -> None:
        self.bytes = 0  # of text, as UTF-8
        self.chars = 0
        self.tokens = 0  # of what is not text
        self.opaque_bytes = 0  # of base64
        self.images = 0
        self.documents = 0
        self.is_structured = False  # tools were declared, called or answered

    def text(self, text: str) -> None:
        length = len(text)
        self.chars += length
        self.bytes += length if text.isascii() else len(text.encode("utf-8", "surrogatepass"))

    def content(self, content: object, depth: int = 0) -> bool:
        """Count a text or a list of blocks; True when it answers tool calls and says nothing besides."""
        if type(content) is str:
            self.text(content)
            return False
        if type(content) is not list:
            return False
        has_result = has_words = False
        for block in content:
            if type(block) is not dict:
                continue
            kind = block.get("type")
            if kind == "text":
                text = block.get("text")
                if type(text) is str:
                    self.text(text)
                has_words = True
            elif kind == "tool_result":
                has_result = self.is_structured = True
                if depth < 2:
                    self.content(block.get("content"), depth + 1)
            elif kind == "image":
                has_words = True
                self.images += 1
                self.tokens += _TOKENS_PER_IMAGE
                self._source(block)
            elif kind == "document":
                has_words = True
                self.documents += 1
                size = self._source(block)
                self.tokens += (1 + size // _BYTES_PER_PAGE) * _TOKENS_PER_PAGE if size else 0
            elif kind == "thinking":
                thought = block.get("thinking")
                if type(thought) is str:
                    self.text(thought)
            else:  # tool calls, server tools, kinds to come: their size is the size of their JSON
                self.is_structured = True
        return has_result and not has_words

    def _source(self, block: dict[str, Any]) -> int:
        """Count a block's source; the size of its base64, 0 when the bytes are elsewhere."""
        source = block.get("source")
        data = source.get("data") if type(source) is dict else None
        if type(data) is not str:
            return 0
        if source is not None and source.get("type") == "text":
            self.text(data)
            return 0
        self.opaque_bytes += len(data)
        return len(data)


def client_family(user_agent: str) -> str:
    """The family of a user agent: `claude-code`, `python-sdk`, `ts-sdk`, `curl` or `other`.

    Source: API sheet, section 16 (what each client sends).
    """
    if user_agent.startswith(("claude-cli/", "claude-code/")):
        return "claude-code"
    if user_agent.startswith(("Anthropic/Python", "AsyncAnthropic/Python")):
        return "python-sdk"
    if user_agent.startswith("Anthropic/JS"):
        return "ts-sdk"
    return "curl" if user_agent.startswith("curl/") else "other"


def _text_field(mapping: object, name: str) -> str | None:
    value = mapping.get(name) if type(mapping) is dict else None
    return value if type(value) is str else None
