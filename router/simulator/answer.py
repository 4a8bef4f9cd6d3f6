"""What the simulated model does with a request: think or not, call a tool or not, say what, stop why.

Everything is drawn from the request and the seed, so the same request always gets the same answer, streamed or not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router.simulator.advisor import advisor_tool, consulted
from router.simulator.call import Call
from router.simulator.compose import musing, write
from router.simulator.dice import Dice
from router.simulator.reading import to_json
from router.simulator.record import ModelRecord
from router.simulator.schema import Filler
from router.simulator.structured import output_schema
from router.simulator.task import Task, block_text, last_user_text, last_user_words, read_task
from router.simulator.thinking import Origin, digest, prefix_to_bind, sign
from router.simulator.tokens import text_tokens
from router.simulator.words import closest_sentence, keywords

# In the text of a request: every model declines, or those in brackets; LATE ones when they have begun to answer.
REFUSAL_MARK = re.compile(r"SIMULATE_(LATE_)?REFUSAL(?:\(([^)]*)\))?")
WRITTEN_BEFORE_LATE_REFUSAL = 12  # tokens
REFUSAL = {"type": "refusal", "category": "general_harms", "explanation": "The simulator was asked to refuse."}
THINKING_WORDS: Mapping[str, tuple[int, int]] = {  # effort -> words of thought on (easy, hard) work
    "low": (0, 25),
    "medium": (0, 60),
    "high": (30, 120),
    "xhigh": (60, 220),
    "max": (90, 360),
}
TOOL_CALL_TOKENS = 20  # the frame around a tool call


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer: content blocks as the API returns them, why it stopped, and its output counts (tokens)."""

    message_id: str
    content: tuple[dict[str, Any], ...]
    stop_reason: str
    stop_sequence: str | None
    stop_details: dict[str, Any] | None
    output_tokens: int
    thinking_tokens: int
    web_searches: int = 0
    thought: str = ""  # what was thought, shown or not; paces a stream
    advised_at: int | None = None  # output tokens before the advice came; None where no advisor was asked


def request_seed(body: Mapping[str, Any]) -> str:
    """What an answer depends on: the whole body but for how it is sent."""
    return digest({name: value for name, value in body.items() if name not in ("stream", "metadata", "cache_control")})


def declines(text: str, model_id: str) -> str:
    """Whether a model declines a request with this text: `at once`, `late`, or not (empty)."""
    for match in REFUSAL_MARK.finditer(text):
        if match[2] is None or model_id in match[2].replace(",", " ").split():
            return "late" if match[1] else "at once"
    return ""


def answer(
    call: Call,
    body: dict[str, Any],
    prefix: str,
    organization: str,
    room: int,
    seed: int,
    advisor: ModelRecord | None = None,
) -> Answer:
    """Answer a request. `body` is the one after dropped thinking, `room` the tokens left in the context window.

    `advisor` is the model of its advisor tool, where it has one.
    """
    dice = Dice(seed, request_seed(call.body), call.model.id)
    message_id = dice.token("message", "msg_")
    declined = declines(last_user_text(body), call.model.id)
    if declined == "at once":
        return Answer(message_id, (), "refusal", None, dict(REFUSAL), 1, 0)
    limit = min(call.body["max_tokens"], room)
    if declined:
        limit = min(limit, WRITTEN_BEFORE_LATE_REFUSAL)
    if limit <= 0:
        return Answer(message_id, (), "max_tokens", None, None, 0, 0)
    task = read_task(body)
    thought = _thought(call, task, dice)
    maker = _Maker(call, limit)
    if thought:
        maker.think(thought, lambda kept: _thinking_block(call, kept, prefix, organization, message_id))
    advised_at = None
    for block in _plan(call, body, task, dice, advisor):
        if block["type"] == "advisor_tool_result" and maker.stop_reason is None:
            advised_at = maker.used
        maker.add(block)
        if maker.stop_reason:
            break
    reason = maker.stop_reason
    if reason == "max_tokens" and room < call.body["max_tokens"]:
        reason = "model_context_window_exceeded"
    if reason is None:
        reason = "tool_use" if any(block["type"] == "tool_use" for block in maker.content) else "end_turn"
    if declined:
        reason = "refusal"
    searches = sum(block["type"] == "web_search_tool_result" for block in maker.content)
    return Answer(
        message_id,
        tuple(maker.content),
        reason,
        None if declined else maker.stop_sequence,
        dict(REFUSAL) if declined else None,
        maker.used,
        maker.thinking_tokens,
        searches,
        maker.thought,
        advised_at,
    )


class _Maker:
    """Puts blocks into an answer until `max_tokens` or a stop sequence ends it."""

    def __init__(self, call: Call, limit: int) -> None:
        self._model = call.model
        self._stops = call.body.get("stop_sequences") or []
        self._left = limit
        self.content: list[dict[str, Any]] = []
        self.stop_reason: str | None = None
        self.stop_sequence: str | None = None
        self.used = self.thinking_tokens = 0
        self.thought = ""

    def think(self, thought: str, build: Any) -> None:
        kept, tokens = self._fit(thought)
        self._spend(tokens)
        self.thinking_tokens = tokens
        self.thought = kept
        self.content.append(build(kept))

    def add(self, block: dict[str, Any]) -> None:
        if self.stop_reason or self._left <= 0:
            self.stop_reason = self.stop_reason or "max_tokens"
            return
        if block["type"] == "text":
            text, sequence = self._until_stop(block["text"])
            kept, tokens = self._fit(text)
            if kept == text and sequence is not None:
                self.stop_reason, self.stop_sequence = "stop_sequence", sequence
            if kept or sequence is None:
                self.content.append({**block, "text": kept})
        else:
            tokens = 0
            if block["type"] in ("tool_use", "server_tool_use"):
                tokens = text_tokens(to_json(block["input"]).decode(), self._model) + TOOL_CALL_TOKENS
            if tokens > self._left:
                # The call was being written when the tokens ran out: it arrives with what little was whole.
                block, tokens, self.stop_reason = {**block, "input": {}}, self._left, "max_tokens"
            self.content.append(block)
        self._spend(tokens)

    def _spend(self, tokens: int) -> None:
        self.used += tokens
        self._left -= tokens

    def _until_stop(self, text: str) -> tuple[str, str | None]:
        places = [(place, sequence) for sequence in self._stops if (place := text.find(sequence)) >= 0]
        if not places:
            return text, None
        place, sequence = min(places)
        return text[:place], sequence

    def _fit(self, text: str) -> tuple[str, int]:
        """As much of a text as the tokens left allow, and its tokens; at least one token is spent on a text."""
        tokens = max(1, text_tokens(text, self._model))
        if tokens <= self._left:
            return text, tokens
        self.stop_reason = "max_tokens"
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            if text_tokens(text[:middle], self._model) <= self._left:
                low = middle
            else:
                high = middle - 1
        return text[:low], self._left


def _thought(call: Call, task: Task, dice: Dice) -> str:
    """What the model thinks before it answers; empty when thinking is off or not worth it."""
    if not call.is_thinking or call.forces_tool:
        return ""
    if call.thinking_type == "enabled":
        words = 40 if task.is_easy else 140
    else:
        easy, hard = THINKING_WORDS[_effort_in_force(call) or "high"]
        words = easy if task.is_easy else hard
    return musing(task, dice, words + dice.below("thought", words // 3 + 1)) if words else ""


def _effort_in_force(call: Call) -> str | None:
    """The effort of the last system message that sets one, else the top-level one."""
    for message in reversed(call.body["messages"]):
        effort = (message.get("output_config") or {}).get("effort")
        if effort:
            return str(effort)
    return call.effort


def _thinking_block(call: Call, thought: str, prefix: str, organization: str, message_id: str) -> dict[str, Any]:
    display = (call.body.get("thinking") or {}).get("display") or call.model.default_display
    shown = thought if display != "omitted" else ""
    bound = prefix_to_bind(call, prefix)
    origin = Origin(call.model.id, organization, message_id, 0, bound, thought, digest(shown))
    return {"type": "thinking", "thinking": shown, "signature": sign(origin)}


def _plan(
    call: Call, body: dict[str, Any], task: Task, dice: Dice, advisor: ModelRecord | None
) -> list[dict[str, Any]]:
    """The blocks after the thinking, before anything cuts them short."""
    blocks = _work(call, body, task, dice)
    tool = advisor_tool(call.body)
    choice = call.body.get("tool_choice") or {}
    is_free = choice.get("type", "auto") == "auto" or choice.get("name") == "advisor"
    if tool is None or advisor is None or not is_free or _results(body):
        return blocks
    return [*consulted(tool, advisor, task, dice), *blocks]


def _work(call: Call, body: dict[str, Any], task: Task, dice: Dice) -> list[dict[str, Any]]:
    schema = output_schema(call.body)
    choice = (call.body.get("tool_choice") or {}).get("type", "auto")
    tools = [
        tool for tool in call.body.get("tools") or [] if tool.get("input_schema") and not tool.get("defer_loading")
    ]
    results = _results(body)
    if tools and choice != "none" and (call.forces_tool or not results):
        named = (call.body.get("tool_choice") or {}).get("name")
        chosen = [tool for tool in tools if tool["name"] == named] or [_best_tool(tools, body)]
        blocks: list[dict[str, Any]] = []
        if not call.forces_tool:
            blocks.append(_text(f"I'll use `{chosen[0]['name']}` for this."))
        return [*blocks, _tool_use(chosen[0], body, dice)]
    if schema is not None:
        value = Filler(last_user_text(body), dice, schema).value(schema)
        return [_text(to_json(value).decode())]
    if results:
        return [_text(_after_results(results, task))]
    search = next((t for t in call.body.get("tools") or [] if str(t.get("type")).startswith("web_search_")), None)
    if search is not None and choice != "none":
        return _searched(search, task, dice)
    written = write(task, dice)
    last = body["messages"][-1]
    if last["role"] == "assistant":  # a prefill is continued, not repeated
        written = written.removeprefix(block_text(last["content"]).strip()).strip() or written
    return [_text(written)]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _results(body: Mapping[str, Any]) -> list[str]:
    """The texts of the tool results in the last user turn."""
    for message in reversed(body["messages"]):
        if message["role"] == "user":
            content = message["content"]
            blocks = content if isinstance(content, list) else []
            return [block_text(block.get("content")) for block in blocks if block["type"] == "tool_result"]
    return []


def _best_tool(tools: list[dict[str, Any]], body: Mapping[str, Any]) -> dict[str, Any]:
    """The tool whose name and description share most words with the request; the first of equals."""
    wanted = set(keywords(last_user_words(body), 40))

    def fit(tool: dict[str, Any]) -> int:
        named = str(tool["name"]).replace("_", " ").replace("-", " ")
        return 10 * len(wanted & set(keywords(named, 12))) + len(
            wanted & set(keywords(str(tool.get("description")), 60))
        )

    return max(tools, key=fit)


def _tool_use(tool: Mapping[str, Any], body: Mapping[str, Any], dice: Dice) -> dict[str, Any]:
    schema = tool["input_schema"]
    given = Filler(last_user_words(body), Dice(dice.number("tool"), tool["name"]), schema).value(schema)
    call_id = dice.token("tool_use", "toolu_")
    return {"type": "tool_use", "id": call_id, "name": tool["name"], "input": given, "caller": {"type": "direct"}}


def _after_results(results: list[str], task: Task) -> str:
    found = "\n".join(results).strip()
    line = closest_sentence(task.instruction, found)[:400] if found else "nothing"
    return f"I have the result. It says: {line}\n\nThat answers the request."


def _searched(tool: Mapping[str, Any], task: Task, dice: Dice) -> list[dict[str, Any]]:
    """One web search with two results, then the answer."""
    words = keywords(task.instruction, 4) or ["news"]
    call_id = dice.token("search", "srvtoolu_")
    results = [
        {
            "type": "web_search_result",
            "url": f"https://example.com/{'-'.join(words)}-{number}",
            "title": " ".join(words).capitalize(),
            "encrypted_content": dice.token(f"page/{number}", "enc_", 44),
            "page_age": None,
        }
        for number in (1, 2)
    ]
    return [
        {
            "type": "server_tool_use",
            "id": call_id,
            "name": tool.get("name") or "web_search",
            "input": {"query": " ".join(words)},
        },
        {"type": "web_search_tool_result", "tool_use_id": call_id, "content": results},
        _text(write(task, dice)),
    ]
