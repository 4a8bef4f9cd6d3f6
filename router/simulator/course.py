"""The course of one request: compacted where due, answered, maybe with an advisor's help, handed on if declined.

Each of these is a sampling call of its own; together they are the iterations of the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from router.simulator.accepts import check_accepts
from router.simulator.advisor import advice_tokens, advisor_call, advisor_tool
from router.simulator.answer import Answer, answer, request_seed
from router.simulator.call import Call
from router.simulator.compaction import compacted, is_due, pauses, since_compaction, summary_block
from router.simulator.diagnosis import Diagnoses
from router.simulator.dice import Dice
from router.simulator.fallback import Sticky, fallback_block, fallback_calls
from router.simulator.iterations import Iteration
from router.simulator.message import Outcome
from router.simulator.promptcache import CachePlan, PromptCache
from router.simulator.record import Roster
from router.simulator.refusal import Refusal
from router.simulator.settings import SimulatorSettings
from router.simulator.thinking import History, Replay, check_replay
from router.simulator.tokens import Part, prompt_parts, prompt_tokens, text_tokens, without_old_thinking

NOTHING = CachePlan(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one model made of a request."""

    call: Call
    answer: Answer
    plan: CachePlan  # what the top-level counts say of the input
    iterations: tuple[Iteration, ...]
    transformations: list[dict[str, str]]


class Courses:
    """Answers requests of one simulated API; it remembers who was handed on to which model."""

    def __init__(self, settings: SimulatorSettings, roster: Roster, cache: PromptCache) -> None:
        self._settings, self._roster, self._cache = settings, roster, cache
        self._diagnoses = Diagnoses()
        self._sticky = Sticky()

    def run(self, call: Call, replay: Replay, organization: str, workspace: str) -> Outcome:
        """Everything that comes of a request that the API takes; raises `Refusal` for a prompt that is too long."""
        now_s = self._settings.clock()
        handed_on = list(fallback_calls(call, self._roster, lambda made: check_accepts(made, self._roster)))
        stays_with = self._sticky.find(call, workspace, now_s) if handed_on else None
        places = [index for index, made in enumerate(handed_on) if made.model.id == stays_with]
        if places:
            attempts = []
            queue = handed_on[places[0] :]
        else:
            attempts = [self._attempt(call, replay, organization, workspace)]
            queue = handed_on
        for made in queue:
            if attempts and attempts[-1].answer.stop_reason != "refusal":
                break
            attempts.append(
                self._attempt(made, check_replay(made, self._roster, organization), organization, workspace)
            )
        outcome = _joined(call, attempts)
        if outcome.call.model.id != call.model.id and outcome.answer.stop_reason != "refusal":
            self._sticky.keep(call, workspace, outcome.call.model.id, now_s)
        plan = attempts[0].iterations[0].plan
        told = self._diagnoses.diagnose(call, plan, workspace, outcome.answer.message_id)
        return replace(outcome, diagnostics=told)

    def _attempt(self, call: Call, replay: Replay, organization: str, workspace: str) -> Attempt:
        body, plan, prefix = replay.body, self._plan(call, replay.body, workspace), replay.prefix
        ran: list[Iteration] = []
        written: tuple[dict[str, Any], ...] = ()
        if is_due(call, plan.total):
            dice = Dice(self._settings.seed, request_seed(call.body), call.model.id)
            block = summary_block(call, since_compaction(body), dice)
            written = (block,)
            tokens = text_tokens(block["content"], call.model)
            ran.append(Iteration("compaction", call, plan, tokens, is_streamed=False))
            if pauses(call):
                alone = Answer(dice.token("message", "msg_"), written, "compaction", None, None, 0, 0)
                return Attempt(call, alone, NOTHING, tuple(ran), replay.transformations)
            body = compacted(since_compaction(body), block)
            plan = self._plan(call, body, workspace)
            history = History(call.body)
            history.add("assistant", block)
            prefix = history.value()  # what the client will send back stands behind the summary
        tool = advisor_tool(call.body)
        advisor = None if tool is None else self._roster.known(tool["model"])
        room = call.model.context_window - plan.total
        made = answer(call, body, prefix, organization, room, self._settings.seed, advisor)
        if made.advised_at is None or tool is None or advisor is None:
            ran.append(Iteration("message", call, plan, made.output_tokens, is_streamed=bool(made.content)))
        else:
            ran += self._advised(call, plan, made, tool, workspace)
        made = replace(made, content=(*written, *made.content))
        return Attempt(call, made, plan, tuple(ran), replay.transformations)

    def _advised(
        self, call: Call, plan: CachePlan, made: Answer, tool: Mapping[str, Any], workspace: str
    ) -> list[Iteration]:
        """The executor until it asked, the advisor, and the executor with the advice."""
        advisor = self._roster.usable(tool["model"])
        place = next(index for index, block in enumerate(made.content) if block["type"] == "advisor_tool_result")
        advice = made.content[place]["content"]["text"]
        asked = advisor_call(call, tool, advisor, list(made.content[:place]))
        # The markers of the client are the executor's; the advisor caches by its tool's own setting.
        parts = [replace(part, marker=None) for part in prompt_parts(asked.body, advisor)]
        read = self._cache.plan(asked, parts, workspace, self._settings.clock())
        before = made.advised_at or 0
        kept = plan.read + plan.write_5m + plan.write_1h
        again = CachePlan(kept, 0, 0, plan.input + before + text_tokens(advice, call.model))
        spoken = advice_tokens(advice, advisor, tool.get("max_tokens"))
        return [
            Iteration("message", call, plan, before),
            Iteration("advisor_message", asked, read, spoken, is_streamed=False, is_named=True),
            Iteration("message", call, again, made.output_tokens - before),
        ]

    def _plan(self, call: Call, body: dict[str, Any], workspace: str) -> CachePlan:
        return self._cache.plan(call, rendered(call, body), workspace, self._settings.clock())


def rendered(call: Call, body: dict[str, Any]) -> list[Part]:
    """The prompt as the model reads it; raises `Refusal` for one that is too long."""
    parts = prompt_parts(without_old_thinking(since_compaction(body), call.model), call.model)
    total = prompt_tokens(parts)
    if total > call.model.context_window:
        raise Refusal(f"prompt is too long: {total} tokens > {call.model.context_window} maximum")
    return parts


def _joined(call: Call, attempts: list[Attempt]) -> Outcome:
    """One answer of all attempts: what each wrote, a mark between them, and every call that was billed."""
    last = attempts[-1]
    opened = next((attempt for attempt in attempts if attempt.answer.content), last)
    opening = (opened.call, opened.plan, opened.transformations)
    if len(attempts) == 1 and last.call is call:
        return Outcome(call, last.answer, last.plan, last.transformations, last.iterations, opening)
    content: list[dict[str, Any]] = []
    ran: list[Iteration] = []
    for place, attempt in enumerate(attempts):
        if place:
            before = attempts[place - 1]
            category = (before.answer.stop_details or {}).get("category")
            content.append(fallback_block(before.call, attempt.call, category))
        content += attempt.answer.content
        ran += [replace(each, is_named=each.kind != "compaction") for each in attempt.iterations]
    if ran[-1].kind == "message":
        ran[-1] = replace(ran[-1], kind="fallback_message")
    details = last.answer.stop_details
    said = replace(
        last.answer,
        message_id=attempts[0].answer.message_id,
        content=tuple(content),
        stop_details=None if details is None else {**details, "recommended_model": None},
    )
    return Outcome(last.call, said, last.plan, last.transformations, tuple(ran), opening)
