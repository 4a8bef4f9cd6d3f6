"""Which language a text is in: a human one, or program code. Plain scanning of a bounded piece of text, no regex.

Both answers are guesses for policy conditions, good enough to send German mail or pasted code another way.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# Ranges of code points that by themselves name a language, or nearly so.
_SCRIPTS = (
    (0x3040, 0x30FF, "ja"),  # kana: looked for before Chinese characters, which Japanese uses too
    (0xAC00, 0xD7AF, "ko"),
    (0x4E00, 0x9FFF, "zh"),
    (0x0400, 0x04FF, "ru"),
    (0x0370, 0x03FF, "el"),
    (0x0590, 0x05FF, "he"),
    (0x0600, 0x06FF, "ar"),
    (0x0900, 0x097F, "hi"),
    (0x0E00, 0x0E7F, "th"),
)


def _words(text: str) -> list[str]:
    return text.split()


# Short words that are common in one language and rare in the others.
_COMMON_WORDS = MappingProxyType(
    {
        "en": frozenset(_words("the and of to is in that it for with this are was what how from by an be or")),
        "de": frozenset(_words("der die das und ist nicht ein eine zu mit von für auf den dem sich auch wie wir ich")),
        "fr": frozenset(_words("le la les et est une des du que pour dans pas sur avec vous nous je ce qui au")),
        "es": frozenset(_words("el la los las y es una que de en por para con no se del como su más qué")),
        "it": frozenset(_words("il lo la gli e è una che di per con non si del della sono come più questo al")),
        "pt": frozenset(_words("o a os as e é uma que de em por para com não se do da como mais você")),
        "nl": frozenset(_words("de het een en is van dat niet op te met voor zijn er aan ook wij ik naar deze")),
        "sv": frozenset(_words("och det att är en ett som på inte för med den av till om har jag vi ska från")),
        "pl": frozenset(_words("i w nie na to się z że jest do jak dla od po przez który tym ale są czy")),
        "tr": frozenset(_words("ve bir bu için de da ile ne çok daha olarak gibi değil olan var ben kadar ama mi en")),
    }
)
_LEAST_HITS = 2  # of common words, before a Latin text is said to be in a language
_LEAST_SHARE = 0.15  # of letters in a script, before the script decides

_CODE_STARTS = (
    "def ", "class ", "import ", "from ", "return", "if (", "for (", "while (", "else", "elif ", "try:", "except",
    "function ", "const ", "let ", "var ", "public ", "private ", "static ", "#include", "package ", "func ", "fn ",
    "SELECT ", "INSERT ", "UPDATE ", "CREATE ", "@", "//", "/*", "$ ", "</", "print(", "self.", "async ", "await ",
)  # fmt: skip
_CODE_ENDS = ("{", "}", ";", "};", "):", "})", "},", "*/", "/>", "->", "=>", "[", "],")


def last_user_text(body: Mapping[str, Any], edge_chars: int) -> str:
    """The last user message that holds text: at most `edge_chars` from each of its ends."""
    messages = body.get("messages")
    for message in reversed(messages if isinstance(messages, list) else []):
        if message.get("role") == "user":
            text = joined_text(message.get("content"), edge_chars)
            if text:
                return text
    return ""


def joined_text(content: object, edge_chars: int) -> str:
    """The text of a message's content, blocks joined: at most `edge_chars` from each of its ends."""
    if isinstance(content, list):
        content = _joined_ends(content, edge_chars)
    if not isinstance(content, str):
        return ""
    return content if len(content) <= 2 * edge_chars else f"{content[:edge_chars]}\n{content[-edge_chars:]}"


def _joined_ends(blocks: list[Any], edge_chars: int) -> str:
    """The text blocks of both ends; those in the middle of a long list are not even looked at."""
    head: list[str] = []
    size = seen = 0
    for block in blocks:
        seen += 1
        text = _block_text(block)
        if text:
            head.append(text)
            size += len(text)
        if size > edge_chars * 2:
            break
    tail: list[str] = []
    size = 0
    for index in range(len(blocks) - 1, seen - 1, -1):
        text = _block_text(blocks[index])
        if text:
            tail.append(text)
            size += len(text)
        if size > edge_chars:
            break
    return "\n".join([*head, *reversed(tail)])


def _block_text(block: Any) -> str:
    text = block.get("text") if isinstance(block, dict) and block.get("type") == "text" else None
    return text if isinstance(text, str) else ""


def language_of(text: str) -> str | None:
    """The language of `text` as ISO 639-1, or None when it is too short or undecided."""
    if not text.isascii():
        found = _by_script(text)
        if found is not None:
            return found
    words = [word.strip(".,;:!?\"'()[]«»„“”¿¡") for word in text.lower().split()]
    scores = sorted(((sum(w in common for w in words), code) for code, common in _COMMON_WORDS.items()), reverse=True)
    (best, code), (second, _) = scores[0], scores[1]
    return code if best >= _LEAST_HITS and best > second else None


def _by_script(text: str) -> str | None:
    letters = 0
    hits: dict[str, int] = {}
    for char in text:
        if not char.isalpha():
            continue
        letters += 1
        point = ord(char)
        if point < 0x0370:
            continue
        for low, high, code in _SCRIPTS:
            if low <= point <= high:
                hits[code] = hits.get(code, 0) + 1
                break
    if "ja" in hits and hits["ja"] * 10 >= hits.get("zh", 0):
        hits["ja"] += hits.pop("zh", 0)
    if not hits:
        return None
    code = max(hits, key=lambda name: hits[name])
    return code if hits[code] >= letters * _LEAST_SHARE else None


def code_share(text: str) -> float:
    """The share of non-empty lines of `text` that look like program code, 0 to 1; fenced blocks count whole."""
    total = code = 0
    is_fenced = False
    for line in text.splitlines():
        stripped = line.strip()
        if not stripped:
            continue
        total += 1
        if stripped.startswith(("```", "~~~")):
            is_fenced = not is_fenced
            code += 1
        elif is_fenced or stripped.endswith(_CODE_ENDS) or stripped.startswith(_CODE_STARTS) or " = " in stripped:
            code += 1
    return code / total if total else 0.0
