"""May a request go to another model than the one it names? `can_serve` lists every reason against it.

With edits allowed (`swap: adapt`) it first works out which of them the target needs, and then holds the edited body
against the same rules.

The promise behind it: swapping never breaks a working program. So the check is strict: it compares the request with
what the target is known to take, and with what the model asked for would have done, and any doubt is a reason. It
looks at parameters and block types only, never at text, in one bounded pass.

What it lets pass on purpose: another tokenizer (the same text is up to half more tokens, which only the context
window feels), a target that does not think where the model asked for does, another default effort.
Source: Anthropic fact sheet, sections 3, 4, 14 and 18.
"""

from __future__ import annotations

from router.catalog.records import Model
from router.swap import rules
from router.swap.adapt import Edit, needed
from router.swap.betas import doubtful
from router.swap.messages import conversation
from router.value import value_class
from router.wire.messages import MessagesRequest

# `input_tokens` is an estimate: a quarter more is allowed for, and half more where the tokenizer may yield more tokens
# (a public measurement found 1.52 times on a repetitive prompt).
_MARGIN_SAME, _MARGIN_OTHER = 1.25, 1.55
_MARGIN_TOKENS = 1024
_MAX_REASONS = 16  # they go into the trace, and a hostile body could have thousands


@value_class(frozen=True, slots=True)
class Verdict:
    """Whether a model may serve a request: `reasons` against it, or `edits` to make in the body so that it may.

    The strict form has no edits, and neither has a refusal.
    """

    reasons: tuple[str, ...]
    edits: tuple[Edit, ...] = ()

    @property
    def is_ok(self) -> bool:
        """True when nothing speaks against it."""
        return not self.reasons


_OK = Verdict(())


def can_serve(
    request: MessagesRequest,
    target: Model,
    *,
    asked: Model | None,
    api_version: str,
    betas: tuple[str, ...],
    input_tokens: int,
    producers: tuple[str, ...] = (),
    edits: tuple[str, ...] = (),
) -> Verdict:
    """Every reason why `target` would refuse or change `request`; an empty verdict means that it may serve it.

    `asked` is the model that the request names; None for a virtual model (`auto`, `lane:NAME`), where only what the
    target itself takes counts. A name that is neither virtual nor in the catalogue is a reason, as nothing is known of
    what its caller relies on. The model asked for may always serve. `input_tokens` is an estimate of the prompt.

    `producers` are the ids of the models whose answers are in the conversation, empty when nobody knows: thinking
    blocks of theirs must be readable. `edits` names what may be changed in the body (`swap.edits.EDITS`; see
    `swap.adapt`): what is then needed is in the verdict, for `adapted`, and the rest is held against the edited body.
    """
    if asked is not None and asked.id == target.id:
        return _OK
    case = rules.Case(request.body, target, asked, api_version, producers)
    made: tuple[Edit, ...] = ()
    if edits:
        made, case = needed(case, edits)
    body = case.body
    reasons: list[str] = []
    if target.lifecycle == "retired":
        reasons.append(f"`{target.id}` is retired")
    if asked is None:
        if request.model != "auto" and not request.model.startswith("lane:"):
            reasons.append("the model asked for is not in the catalogue")
    else:
        reasons.extend(_access(target, asked))
    _limits(reasons, body.get("max_tokens"), target, asked, input_tokens)
    reason = rules.thinking(case)
    if reason is not None:
        reasons.append(reason)
    for field, value in body.items():
        if field in rules.PLAIN_FIELDS or value is None:
            continue
        rule = rules.FIELD_RULES.get(field)
        reason = f"field `{rules.shown(field)}` is not known" if rule is None else rule(value, case)
        if reason is not None:
            reasons.append(reason)
    reasons.extend(conversation(case))
    if betas:
        reasons.extend(doubtful(betas))
    if reasons:
        return Verdict(tuple(dict.fromkeys(reasons))[:_MAX_REASONS])
    return Verdict((), made) if made else _OK


def _access(target: Model, asked: Model) -> list[str]:
    """Who may use the target: data retention, and models for verified organizations only."""
    reasons: list[str] = []
    if target.accepts.requires_retention is not False and asked.accepts.requires_retention is not True:
        reasons.append("30-day data retention is required, which the organization may not have")
    if target.line == "mythos" and asked.line != "mythos":
        reasons.append("only verified organizations may use it")
    return reasons


def _limits(reasons: list[str], max_tokens: object, target: Model, asked: Model | None, input_tokens: int) -> None:
    """The output cap and the context window; what fits the model asked for fits an equal window, whatever it is."""
    cap = max_tokens if isinstance(max_tokens, int) and not isinstance(max_tokens, bool) else 0
    if cap > target.max_output_tokens:
        reasons.append(f"`max_tokens` is {cap}, the most is {target.max_output_tokens}")
    if max_tokens == 0 and asked is not None:
        reasons.append("a cache pre-warm (`max_tokens` 0) belongs to the model asked for")
    grows = asked is not None and asked.tokenizer != target.tokenizer and target.tokenizer != "2024"
    if asked is not None and not grows and target.context_window >= asked.context_window:
        return
    needed = int(input_tokens * (_MARGIN_OTHER if grows else _MARGIN_SAME)) + _MARGIN_TOKENS + cap
    if needed > target.context_window:
        reasons.append(f"about {needed} tokens with margin and output, the window is {target.context_window}")
