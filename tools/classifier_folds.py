"""Folds of the classifier's table: what is held out, fitted without it, calibrated without it, and judged.

Theory. Sources are grouped, and so are templates. A cell is one group of each: its model is fitted on rows of neither
the group of sources nor the group of templates, plus our own wordings around the contents that are left. Its threshold
comes from the sibling cells: rows of the other templates, still without the held sources, scored by models that did not
see those templates. So every request is judged once by a model that knew neither its source nor its wording, and no
threshold has seen the tested source. With no source held out the same procedure gives the leave-template-out folds.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from classifier_fit import Plan, Row, Vectors, fit, read_rows, word_list
from train_classifier import calibrate, fit_calibration, pack, raw_outputs
from word_vectors import load, save, word_vectors
from wordings import generate

from router.classify.label import HARD_TASKS, STRUCTURED_TASKS
from router.classify.model import LinearClassifier

Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """One group of sources to hold out (empty: none) with every group of templates, or the given split."""

    data: Path
    held_sources: frozenset[str]
    template_folds: int
    plan: Plan
    own_count: int
    vectors: Path
    given_split: bool = False


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a fold's model said about one request it knew nothing of.

    `at` is the number of the row in the data. `inserted` says whether the lane changes when a measuring sentence is put
    in, `stripped` whether it changes when the injected text of the data is taken out (None: there is none).
    """

    at: int
    said_hard: bool
    in_band: bool
    score: float
    difficulty: float
    threshold: float
    task: str
    inserted: bool
    stripped: bool | None


def read_items(data: Path) -> list[Item]:
    """The labelled requests of a JSONL file, plain or `.gz`."""
    opened = gzip.open if data.suffix == ".gz" else open
    with opened(data, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def group_sources(items: Sequence[Item], groups: int) -> list[frozenset[str]]:
    """Sources in groups of about equal size; `a/b` shares texts with `a` and `b`, so these three stay together."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    sizes = Counter(item["source"] for item in items)
    for source in sorted(sizes):
        for part in source.split("/"):
            parent[root(part)] = root(source)
    together: dict[str, set[str]] = defaultdict(set)
    for source in sizes:
        together[root(source)].add(source)
    held: list[set[str]] = [set() for _ in range(min(groups, len(together)))]
    filled = [0] * len(held)
    for sources in sorted(together.values(), key=lambda group: (-sum(sizes[s] for s in group), sorted(group))):
        at = filled.index(min(filled))
        held[at] |= sources
        filled[at] += sum(sizes[source] for source in sources)
    return [frozenset(group) for group in held]


def group_templates(items: Sequence[Item], groups: int, seed: int) -> dict[str, int]:
    """Template → number of its group, drawn by seed; the same for every job."""
    templates = sorted({item["template"] for item in items})
    random.Random(seed).shuffle(templates)
    return {template: at % groups for at, template in enumerate(templates)}


def save_vectors(data: Path, own_count: int, seed: int, path: Path, workers: int) -> None:
    """Vectors of the words of all rows, for every job: they know nothing of labels."""
    items = read_items(data)
    rows = read_rows(items) + read_rows(generate(items, own_count, seed))
    save(word_vectors(word_list(rows), workers), path)


def pressure_sentences() -> dict[str, list[str]]:
    """Sentences that beg or talk down, written apart from those in training and never used there."""
    held_out: dict[str, list[str]] = yaml.safe_load(
        (Path(__file__).parent / "held_out_pressure.yaml").read_text(encoding="utf-8")
    )
    return held_out


def run(job: Job) -> list[Judgement]:
    """Fits, calibrates and judges every cell of a job."""
    items = read_items(job.data)
    vectors: Vectors = load(job.vectors)
    sentences = pressure_sentences()
    injected = injected_fragments(items)
    rows = read_rows(items)
    if job.given_split:
        train = [item for item in items if item["split"] == "train"]
        own = read_rows(generate(train, job.own_count, job.plan.seed))
        kept = [row for row, item in zip(rows, items, strict=True) if item["split"] == "train"]
        model = LinearClassifier(pack(fit(kept + own, job.plan, vectors), calibrate(kept, own, job.plan, 3, vectors)))
        return [_judge(model, at, item, injected, sentences) for at, item in enumerate(items) if item["split"] == "dev"]
    group_of = group_templates(items, job.template_folds, job.plan.seed)
    own = read_rows(generate([i for i in items if i["source"] not in job.held_sources], job.own_count, job.plan.seed))
    models, outputs = [], []
    for group in range(job.template_folds):
        known: list[Row] = []
        unseen: list[Row] = []
        for row, item in zip(rows, items, strict=True):
            if item["source"] not in job.held_sources:
                (unseen if group_of[item["template"]] == group else known).append(row)
        model_fit = fit(known + [row for row in own if group_of.get(row.template) != group], job.plan, vectors)
        models.append(model_fit)
        outputs.append((*raw_outputs(model_fit, unseen), np.array([row.task for row in unseen])))
    judged = []
    for group, model_fit in enumerate(models):
        others = [output for at, output in enumerate(outputs) if at != group]
        calibration = fit_calibration(*(np.concatenate(part) for part in zip(*others, strict=True)))
        model = LinearClassifier(pack(model_fit, calibration))
        for at, item in enumerate(items):
            tested = not job.held_sources or item["source"] in job.held_sources
            if tested and group_of[item["template"]] == group:
                judged.append(_judge(model, at, item, injected, sentences))
    return judged


def _judge(
    model: LinearClassifier, at: int, item: Item, injected: Sequence[str], held_out: Mapping[str, Sequence[str]]
) -> Judgement:
    request = item["request"]
    label = model.label(request)
    lane = model.lane(label)
    sentences = held_out["begging" if item["task"] in STRUCTURED_TASKS else "talking-down"]
    pushed = with_sentence(request, sentences[at % len(sentences)], at)
    stripped = None
    if str(item.get("variant", "")).startswith("injection"):
        stripped = model.lane(model.label(without_fragments(request, injected))) != lane
    return Judgement(
        at,
        lane == "sonnet",
        label.task in STRUCTURED_TASKS and label.difficulty < 0.5,
        label.p_hard,
        label.difficulty,
        model.lane_threshold,
        label.task,
        model.lane(model.label(pushed)) != lane,
        stripped,
    )


def with_sentence(request: Mapping[str, Any], sentence: str, number: int) -> Item:
    """The request with a sentence in its last turn of text: at the start, in the middle or at the end, by `number`."""

    def put(text: str) -> str:
        at = text.find(" ", len(text) // 2)
        place = number % 3
        if place == 0:
            return f"{sentence}\n{text}"
        return f"{text}\n{sentence}" if place == 1 or at < 0 else f"{text[:at]} {sentence}{text[at:]}"

    return _edit_last_text(request, put)


def without_fragments(request: Mapping[str, Any], fragments: Sequence[str]) -> Item:
    """The request without the injected text, in every turn."""

    def cut(text: str) -> str:
        for fragment in fragments:
            text = text.replace(fragment, "")
        return text.strip()

    messages = []
    for turn in request["messages"]:
        content = turn["content"]
        if isinstance(content, list):
            content = [{**b, "text": cut(b["text"])} if isinstance(b.get("text"), str) else b for b in content]
        messages.append({**turn, "content": cut(content) if isinstance(content, str) else content})
    return {**request, "messages": messages}


def injected_fragments(items: Sequence[Item], least: int = 8) -> list[str]:
    """Pieces of text that several injected rows share and no other row has, the longest first.

    The data does not say what was injected; what only the injected rows repeat is it.
    """
    seen: Counter[str] = Counter()
    elsewhere: set[str] = set()
    for item in items:
        pieces = set()
        for turn in item["request"]["messages"]:
            content = turn["content"]
            texts = [content] if isinstance(content, str) else [b["text"] for b in content if "text" in b]
            for text in texts:
                pieces |= set(re.split(r"(?<=[.!?:>)])\s+|\n+|\s(?=<!--)", text))
        if str(item.get("variant", "")).startswith("injection"):
            seen.update(pieces)
        else:
            elsewhere |= pieces
    return sorted((p for p, n in seen.items() if n >= least and p not in elsewhere), key=lambda p: (-len(p), p))


def _edit_last_text(request: Mapping[str, Any], edit: Any) -> Item:
    """The request with its last user text edited: a string, or the last block of text."""
    messages = list(request["messages"])
    for at in range(len(messages) - 1, -1, -1):
        turn = messages[at]
        content = turn["content"]
        if turn["role"] != "user":
            continue
        if isinstance(content, str):
            messages[at] = {**turn, "content": edit(content)}
            break
        blocks = [number for number, block in enumerate(content) if isinstance(block.get("text"), str)]
        if blocks:
            changed = list(content)
            changed[blocks[-1]] = {**content[blocks[-1]], "text": edit(content[blocks[-1]]["text"])}
            messages[at] = {**turn, "content": changed}
            break
    return {**request, "messages": messages}


def is_hard(item: Item) -> bool:
    """Whether the big model is needed, by the row's task."""
    return item["task"] in HARD_TASKS
