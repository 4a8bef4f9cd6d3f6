"""Small tricks with text: sentences, the words that matter, a summary, something that looks like a translation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|\n{1,}|(?<=[。！？])")
WORD = re.compile(r"[^\W\d_][\w'-]*", re.UNICODE)
_STOP_WORD_LIST = """
a about after all also an and any are as at be because been before being but by can could did do does each for from
had has have he her his how i if in into is it its just like may me more most my new no not now of on one only or
other our out over she should so some such than that the their them then there these they this those to under up us
very was we were what when where which while who will with would you your write give tell make please quick need
want question answer text following explain describe python function code using use
"""
STOP_WORDS = frozenset(_STOP_WORD_LIST.split())
TONGUES: Mapping[str, tuple[str, ...]] = {
    "es": ("spanish", "español", "espagnol", "spanisch", "西班牙"),
    "fr": ("french", "français", "francés", "französisch", "法语"),
    "de": ("german", "deutsch", "allemand", "alemán", "德语"),
    "it": ("italian", "italiano", "italien", "italienisch"),
    "pt": ("portuguese", "português", "portugais", "portugués"),
}
# The most common English words in each tongue; everything else keeps its stem and takes a local ending.
LEXICON: Mapping[str, str] = {
    "es": (
        "the=el a=un an=un and=y of=de to=a in=en is=es are=son was=fue for=para with=con on=en that=que "
        "this=este it=lo we=nosotros you=usted i=yo your=su our=nuestro my=mi not=no please=por_favor "
        "thanks=gracias thank=gracias hello=hola will=va have=tener has=tiene by=por from=desde at=a "
        "order=pedido today=hoy tomorrow=mañana new=nuevo or=o but=pero can=puede day=día days=días "
        "time=tiempo people=gente customer=cliente price=precio after=después before=antes"
    ),
    "fr": (
        "the=le a=un an=un and=et of=de to=à in=dans is=est are=sont was=était for=pour with=avec on=sur "
        "that=que this=ce it=il we=nous you=vous i=je your=votre our=notre my=mon not=pas "
        "please=s'il_vous_plaît thanks=merci thank=merci hello=bonjour will=va have=avoir has=a by=par "
        "from=de at=à order=commande today=aujourd'hui tomorrow=demain new=nouveau or=ou but=mais can=peut "
        "day=jour days=jours time=temps people=gens customer=client price=prix after=après"
    ),
    "de": (
        "the=die a=ein an=ein and=und of=von to=zu in=in is=ist are=sind was=war for=für with=mit on=auf "
        "that=dass this=diese it=es we=wir you=Sie i=ich your=Ihre our=unsere my=meine not=nicht please=bitte "
        "thanks=danke thank=danke hello=hallo will=wird have=haben has=hat by=von from=aus at=bei "
        "order=Bestellung today=heute tomorrow=morgen new=neu or=oder but=aber can=kann day=Tag days=Tage "
        "time=Zeit people=Leute customer=Kunde price=Preis after=nach"
    ),
    "it": (
        "the=il a=un an=un and=e of=di to=a in=in is=è are=sono was=era for=per with=con on=su that=che "
        "this=questo we=noi you=voi i=io your=vostro our=nostro not=non please=per_favore thanks=grazie "
        "hello=ciao will=andrà or=o"
    ),
    "pt": (
        "the=o a=um an=um and=e of=de to=para in=em is=é are=são was=foi for=para with=com on=em that=que "
        "this=este we=nós you=você i=eu your=seu our=nosso not=não please=por_favor thanks=obrigado hello=olá "
        "will=vai or=ou"
    ),
}
ENDINGS: Mapping[str, tuple[str, ...]] = {
    "es": ("o", "ar", "ción", "a"),
    "fr": ("e", "er", "tion", "é"),
    "de": ("en", "ung", "er", "e"),
    "it": ("o", "are", "zione", "a"),
    "pt": ("o", "ar", "ção", "a"),
}


def sentences(text: str) -> list[str]:
    """The sentences and lines of a text, trimmed, empty ones left out."""
    return [piece.strip() for piece in SENTENCE_END.split(text) if piece and piece.strip()]


def keywords(text: str, most: int = 8) -> list[str]:
    """The words that matter, commonest first, in lower case; ties keep their order of appearance."""
    counts = Counter(
        word.lower() for word in WORD.findall(text[:20_000]) if len(word) > 2 and word.lower() not in STOP_WORDS
    )
    return [word for word, _ in counts.most_common(most)]


def summary(text: str, most: int = 3) -> str:
    """The sentences that carry most of the text's own words, in their order."""
    found = [piece for piece in sentences(text[:40_000]) if len(piece) > 20][:400]
    if len(found) <= most:
        return " ".join(found) or text[:200].strip()
    weights = Counter(word.lower() for piece in found for word in WORD.findall(piece))
    for word in STOP_WORDS:
        weights.pop(word, None)

    def weight(index: int) -> float:
        own = [word.lower() for word in WORD.findall(found[index])]
        return sum(weights[word] for word in own) / (len(own) + 6) + (2.0 if index == 0 else 0.0)

    best = sorted(sorted(range(len(found)), key=weight, reverse=True)[:most])
    return " ".join(found[index] for index in best)


def closest_sentence(question: str, text: str) -> str:
    """The sentence of a text that shares most words with a question."""
    wanted = set(keywords(question, 30))
    pieces = sentences(text[:60_000])[:600]
    if not pieces:
        return text.strip()[:200]
    return max(pieces, key=lambda piece: (len(wanted & set(keywords(piece, 60))), -len(piece)))


def target_tongue(instruction: str) -> str:
    """The language that an instruction asks for; Spanish where it names none of ours."""
    lowered = instruction.lower()
    places = [(lowered.rfind(name), tongue) for tongue, names in TONGUES.items() for name in names]
    place, tongue = max(places)
    return tongue if place >= 0 else "es"


def translated(text: str, tongue: str) -> str:
    """Words for words: common ones from a small lexicon, the others with an ending of the language."""
    lexicon = dict(pair.split("=", 1) for pair in LEXICON[tongue].split())
    endings = ENDINGS[tongue]

    def one(match: re.Match[str]) -> str:
        word = match[0]
        known = lexicon.get(word.lower())
        if known is None:
            if len(word) < 5 or word[0].isupper():
                return word
            return word.rstrip("aeiouy") + endings[len(word) % len(endings)]
        known = known.replace("_", " ")
        return known[:1].upper() + known[1:] if word[0].isupper() and len(word) > 1 else known

    return WORD.sub(one, text)
