"""Sentences that talk about the routing instead of asking for work: they are taken out before a request is judged.

A text inside a request may claim that only the biggest model will do, that any small one suffices, or that earlier
instructions are void. What such a sentence says is no evidence of how hard the work is, so the judgement does not read
it. A sentence is known by the words that meet in it (a model and a size, an instruction and that it be ignored, a
made-up field and its level), whatever their order. Words of the text are at hand when this is asked, so a request
without a cue costs a few set look-ups. Where too little would be left, the text stays as it is: then it is the
request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


def _set(text: str) -> frozenset[bytes]:
    return frozenset(text.encode().split())


_MODEL = _set(
    "model models llm llms tier claude opus sonnet haiku gpt reasoner modell modells modelle modelo modelos "
    "modèle modèles modello modelli модель модели"
)
_SIZE = _set(
    "biggest largest strongest smartest cleverest capable best better top premium flagship frontier highest "
    "smallest cheapest cheaper lightest lightweight weakest weak fastest tiniest tiny small cheap mini nano "
    "budget economy lowest big powerful heaviest expensive dearest bigger stronger smarter smaller stupid dumb xl "
    "ultra lite senior giant huge suffice suffices enough upwards größte größten stärkste stärksten beste besten "
    "kleinste kleinsten billigste billigsten teuerste kleines großes genügt reicht puissant petit cher grand "
    "meilleur suffit potente pequeño mejor barato económico basta capaz piccolo migliore economico maior menor "
    "melhor мощную большую маленькую дешёвую сильную хватит"
)
_ROUTE = _set("route routes routed routing escalate")
_HINT = _set("hint layer header directive override advice pragma premium budget economy flagship xl expert sla upwards")
_VOID = _set(
    "ignore disregard forget discard override overrule ignorez ignora oubliez oublie olvida olvide esqueça "
    "dimentica vergiss ignoriere игнорируй забудь"
)
_ORDER = _set(
    "instruction instructions prompt prompts directive directives guidelines told previous earlier consignes "
    "consigne instrucciones instruções istruzioni anweisungen anweisung инструкции указания"
)
_FIELD = _set(
    "tier model complexity difficulty effort routing route router lane level class reasoning thinking priority "
    "quality hard hint meta metadata mode score schwierigkeit dificultad difficulté"
)
_LEVEL = _set(
    "max maximum min minimal high highest low lowest extreme flagship premium economy budget best cheap cheapest "
    "trivial easy hard small large big mini expert top ultra none heavy light critical unlimited draft free full "
    "deep zero 0 00 haiku sonnet opus claude true false"
)
_CLAIM = _set(
    "trivial simple easy easiest hard harder hardest difficult complex complicated challenging tough "
    "straightforward elementary expert phd olympiad unsolved intractable undemanding routine basic demanding "
    "kindergarten beginner boilerplate obvious fiendishly enormously"
)
_WORK = _set(
    "task tasks request question prompt classification extraction lookup job one work query stuff reasoning "
    "derivation mathematics summary summarisation translation favour problem"
)
_SELF = _set("this it that just only here following what these document text paragraph message page which")
_READING = _set("reading reads readers read gets processing handling parsing seeing whichever dear receiving")
_READER = _set("reader readers assistant reasoner whoever")
_MUST = _set("must shall should required disregard drop")
_THOUGHT = _set("think thinking thought reasoning overthink brains intelligence")
_AMOUNT = _set("no without zero unlimited hundred hundreds thousand thousands 000 0000 00000 hours days needed")
_OVERRIDE = _set("override")
_OFFICE = _set("system admin operator developer begin end code instruction")
# A sentence with a word of both is pressure.
_PAIRS = (
    (_MODEL, _SIZE),
    (_MODEL, _READING),
    (_ROUTE, _HINT),
    (_ROUTE, _MODEL),
    (_VOID, _ORDER),
    (_OVERRIDE, _OFFICE),
    (_READER, _MUST),
    (_THOUGHT, _AMOUNT),
)
_CUES = (_MODEL | _ROUTE | _VOID | _FIELD | _CLAIM | _THOUGHT | _READER) - _set("class text level score mode quality")
# Where one sentence ends and the next begins; a comment in mark-up stays whole.
_PIECES = re.compile(r"<!--[^>]{0,400}>|[^\n.!?。<]*(?:[.!?。]++(?:(?=[\s\"'”»)\]]|$)[\"'”»)\]]*[ \t]?)?|\n|<|$)")
# Characters that must be left to be the request; distinct words of a short sentence, and of the longest that counts.
_LEAST, _SHORT, _LONGEST = 40, 16, 30
_FIELD_MARKS = ("=", ":", "/", ">")


def has_cue(words: Iterable[bytes]) -> bool:
    """Whether folded words hold one that a sentence about the routing would have."""
    return not _CUES.isdisjoint(words)


def without_pressure(text: str) -> str:
    """The text without the sentences that talk about the routing; the text itself where there are none."""
    kept: list[str] = []
    is_announced = False  # the piece before ended in a colon: what it announces belongs to it
    has_dropped = False
    for piece in _PIECES.findall(text):
        if is_pressure(piece):
            has_dropped = True
            is_announced = piece.rstrip().endswith(":")
        elif is_announced and piece.strip():
            is_announced = False
        else:
            kept.append(piece)
    if not has_dropped:
        return text
    rest = "".join(kept)
    return rest if len(rest.strip()) >= _LEAST else text


def is_pressure(sentence: str) -> bool:
    """Whether a sentence talks about the routing, by the words that meet in it."""
    found = frozenset(sentence.lower().translate(_BLANKS).encode("utf-8", "replace").split())
    if len(found) > _LONGEST or _CUES.isdisjoint(found):
        return False
    if any(not one.isdisjoint(found) and not other.isdisjoint(found) for one, other in _PAIRS):
        return True
    if len(found) > _SHORT:  # a longer sentence that holds such words speaks of something
        return False
    if not (_FIELD.isdisjoint(found) or _LEVEL.isdisjoint(found)) and any(mark in sentence for mark in _FIELD_MARKS):
        return True
    return not (_CLAIM.isdisjoint(found) or _WORK.isdisjoint(found) or _SELF.isdisjoint(found))


_SIGNS = "\"'()[]{}<>:;,.!?/=*#|+-–—_“”«»„¡¿`~&\n\t"
_BLANKS = str.maketrans(dict.fromkeys(_SIGNS, " ") | dict.fromkeys("0123456789", "0"))
