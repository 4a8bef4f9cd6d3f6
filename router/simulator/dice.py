"""Chance without surprise: choices that depend on a seed and a request, and on nothing else."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


class Dice:
    """A source of numbers drawn from a hash: the same seed and the same names give the same numbers."""

    def __init__(self, *seed: object) -> None:
        self._seed = "\x1f".join(str(part) for part in seed).encode("utf-8", "replace")

    def number(self, name: str) -> int:
        """A 64-bit number for this name."""
        text = self._seed + b"\x1f" + name.encode("utf-8", "replace")
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())

    def below(self, name: str, top: int) -> int:
        """A whole number from 0 to `top` - 1."""
        return self.number(name) % max(1, top)

    def between(self, name: str, low: float, high: float) -> float:
        """A number between two bounds, evenly spread."""
        return low + (high - low) * (self.number(name) / 2**64)

    def lognormal(self, name: str, median: float, sigma: float) -> float:
        """A number whose median is `median`, longer to the right, as waiting times are."""
        first = max(self.between(name + "/u", 0.0, 1.0), 1e-12)
        second = self.between(name + "/v", 0.0, 1.0)
        return median * math.exp(sigma * math.sqrt(-2 * math.log(first)) * math.cos(2 * math.pi * second))

    def choice(self, name: str, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.below(name, len(options))]

    def token(self, name: str, prefix: str, length: int = 22) -> str:
        """An identifier as the API makes them: a prefix, `01`, and letters and digits without look-alikes."""
        left = int.from_bytes(hashlib.blake2b(self._seed + b"/" + name.encode("utf-8", "replace")).digest())
        letters = []
        for _ in range(length):
            left, digit = divmod(left, len(ALPHABET))
            letters.append(ALPHABET[digit])
        return f"{prefix}01{''.join(letters)}"
