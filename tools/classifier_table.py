"""The whole table of the classifier's targets: `python -m tools.classifier_table DATA_FOLDER [--quick]`.

DATA_FOLDER holds `dev.jsonl.gz` (labelled requests), `routellm_eval.jsonl.gz` and `claude_pair.jsonl.gz` (outcomes;
measured only, nothing is trained on them). Prints every figure beside the least and the aim, with 95 % intervals:
leave-source-out folds, leave-template-out folds, the given split, the outcome files, simple rivals, times and size.
Folds fit models of their own; outcomes, times and size are those of the shipped weights. Deterministic by `--seed`,
but for the times. A full run takes about ten minutes on two cores, `--quick` about three with weaker models.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import classifier_figures as figure
import numpy as np
from classifier_figures import Answers
from classifier_fit import Plan
from classifier_folds import Item, Job, Judgement, group_sources, is_hard, read_items, run, save_vectors

from router.classify.evaluate import wilson
from router.classify.label import TASKS
from router.classify.model import LinearClassifier

WEIGHTS = Path(__file__).parents[1] / "router" / "data" / "classifier.bin"
_PAIR = ("claude-3-5-haiku-20241022", "claude-3-5-sonnet-20241022")
_SIZES = (2_000, 100_000)


@dataclass(frozen=True, slots=True)
class Line:
    """One printed figure; `is_less_better` tells how `least` and `aim` are to be read (None: no target)."""

    name: str
    value: float | None
    interval: tuple[float, float] | None = None
    least: float | None = None
    aim: float | None = None
    is_less_better: bool = False

    def text(self) -> str:
        """The line as printed."""
        if self.value is None:
            return f"  {self.name:62} -"
        spread = f"({_number(self.interval[0])} to {_number(self.interval[1])})" if self.interval else ""
        target, verdict = "", ""
        if self.least is not None and self.aim is not None:
            sign = -1 if self.is_less_better else 1
            verdict = "below the least"
            if sign * self.value >= sign * self.least:
                verdict = "aim" if sign * self.value >= sign * self.aim else "least"
            target = f"{_number(self.least)} / {_number(self.aim)}"
        return f"  {self.name:62} {_number(self.value):>7} {spread:20} {target:16} {verdict}".rstrip()


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.0f}"


def answers_of(items: Sequence[Item], judged: Sequence[Judgement]) -> Answers:
    """Judgements beside the truth, in the order of `judged`."""
    return Answers(
        np.array([is_hard(items[one.at]) for one in judged]),
        np.array([one.said_hard for one in judged]),
        np.array([one.score for one in judged], np.float64),
        np.array([TASKS.index(items[one.at]["task"]) for one in judged]),
        np.array([TASKS.index(one.task) for one in judged]),
    )


def fold_lines(items: Sequence[Item], judged: Sequence[Judgement], units: Sequence[str], seed: int) -> list[Line]:
    """The figures of one kind of fold; `units` are what intervals draw, one for each judgement."""
    rows = answers_of(items, judged)

    def line(name: str, rows: Answers, of: figure.Figure, units: Sequence[str], *targets: Any) -> Line:
        return Line(name, of(rows), figure.interval(rows, of, units, seed), *targets)

    lines = [
        line("lane accuracy", rows, figure.accuracy, units, 0.86, 0.92),
        line("lane AUC", rows, figure.area, units, 0.94, 0.97),
        line("hard work sent to Haiku at 45 % Haiku share", rows, _at_45, units, 0.05, 0.02, True),
        line("Haiku share at 2 % hard work downgraded", rows, _at_2, units, 0.38, 0.48),
        line("task macro-F1", rows, figure.task_macro_f1, units, 0.68, 0.80),
        line("task accuracy", rows, figure.task_accuracy, units),
        line("hard work sent to Haiku at the calibrated threshold", rows, figure.false_downgrade, units),
        line("easy work sent to Sonnet at the calibrated threshold", rows, figure.false_upgrade, units),
        line("Haiku share at the calibrated threshold", rows, figure.small_share, units),
        line("expected calibration error", rows, figure.calibration_error, units),
    ]
    band = Answers(rows.hard, np.array([not one.in_band for one in judged]), rows.score, rows.task, rows.said_task)
    lines.append(line("hard work sent to Haiku by the band", band, figure.false_downgrade, units))
    lines.append(line("easy work sent to Sonnet by the band", band, figure.false_upgrade, units))
    for variant in sorted({items[one.at]["variant"] for one in judged}):
        held = [at for at, one in enumerate(judged) if items[one.at]["variant"] == variant]
        targets = (0.80, 0.92) if variant == "multiturn_switch" else ()
        name = "last-turn-switch accuracy" if targets else f"lane accuracy, {variant}"
        of_variant, their_units = rows.take(np.array(held)), [units[at] for at in held]
        lines.append(line(f"{name} ({len(held)})", of_variant, figure.accuracy, their_units, *targets))
    lines += _injections(items, judged, units, seed)
    return lines


def _injections(items: Sequence[Item], judged: Sequence[Judgement], units: Sequence[str], seed: int) -> list[Line]:
    """Shares of rows whose lane an injected sentence changes."""
    lines = []
    held = [(at, one.stripped) for at, one in enumerate(judged) if one.stripped is not None]
    lines.append(_share("injected rows that change lane without the injection", held, units, seed, 0.03, 0.005))
    for hard, name in ((False, "easy rows that change lane by a begging sentence"), (True, "hard rows, talked down")):
        pushed = [(at, one.inserted) for at, one in enumerate(judged) if is_hard(items[one.at]) == hard]
        lines.append(_share(name, pushed, units, seed, 0.03, 0.005))
    return lines


def _share(
    name: str, flags: Sequence[tuple[int, bool | None]], units: Sequence[str], seed: int, least: float, aim: float
) -> Line:
    """A share of flags as a line; the interval is that of a share of wrong lanes, so the same draw serves."""
    changed = np.array([bool(flag) for _, flag in flags], np.bool_)
    nothing = np.zeros(len(flags), np.int64)
    rows = Answers(np.zeros(len(flags), np.bool_), changed, changed.astype(np.float64), nothing, nothing)
    spread = figure.interval(rows, figure.false_upgrade, [units[at] for at, _ in flags], seed) if flags else None
    value = float(changed.mean()) if flags else None
    if value in (0.0, 1.0):  # no draw can differ; the interval of Wilson tells what so few rows may hide
        spread = wilson(value, len(flags))
    return Line(f"{name} ({len(flags)})", value, spread, least, aim, True)


def _at_45(rows: Answers) -> float | None:
    return figure.downgraded_at(rows, 0.45)


def _at_2(rows: Answers) -> float | None:
    return figure.share_at(rows, 0.02)


def outcome_lines(model: LinearClassifier, folder: Path, seed: int) -> list[Line]:
    """APGR on both outcome files by `p_hard`, by `difficulty` and by length alone."""
    lines = []
    held: list[tuple[str, str, Any, Any]] = []
    for item in read_items(folder / "routellm_eval.jsonl.gz"):
        held.append((item["bench"], item["prompt"], item["strong"], item["weak"]))
    for item in read_items(folder / "claude_pair.jsonl.gz"):
        if all(name in item["correct"] for name in _PAIR):
            weak, strong = ([float(item["correct"][name])] for name in _PAIR)
            held.append((f"claude {item['task']}", item["prompt"], strong, weak))
            held.append(("claude all", item["prompt"], strong, weak))
    by_bench = defaultdict(list)
    for bench, prompt, strong, weak in held:
        by_bench[bench].append((prompt, strong, weak))
    targets = {"mmlu": (0.52, 0.60), "gsm8k": (0.55, 0.62)}
    for bench, rows in by_bench.items():
        labels = [model.label({"messages": [{"role": "user", "content": prompt}]}) for prompt, _, _ in rows]
        strong, weak = (np.array([row[at] for row in rows], np.float64) for at in (1, 2))
        scores = {
            "p_hard": [label.p_hard for label in labels],
            "difficulty": [label.difficulty for label in labels],
            "length": [float(len(row[0])) for row in rows],
        }
        for name, values in scores.items():
            score = np.array(values)
            apgr, calls = figure.outcome_curve(score, strong, weak)
            shown = f"APGR {bench} by {name} ({len(rows)}; CPT50 {calls[1]:.0f}, CPT80 {calls[2]:.0f})"
            spread = figure.apgr_interval(score, strong, weak, seed)
            lines.append(Line(shown, apgr, spread, *(targets.get(bench, ()) if name != "length" else ())))
    return lines


def rival_lines(items: Sequence[Item], judged: Sequence[Judgement], seed: int) -> list[str]:
    """The classifier beside simple routers, at the calibrated thresholds of the same folds."""
    rows = answers_of(items, judged)
    texts = [figure.text_of(items[one.at]["request"]) for one in judged]
    listed = {"this classifier": rows, **figure.rivals(rows, texts, seed)}
    lines = [f"  {'':22} accuracy    AUC  false-down  false-up  at 45 %  at 2 %   cost"]
    for name, said in listed.items():
        ordered = len(np.unique(said.score)) > 1
        values = [
            figure.accuracy(said),
            figure.area(said),
            figure.false_downgrade(said),
            figure.false_upgrade(said),
            _at_45(said) if ordered else None,
            _at_2(said) if ordered else None,
            figure.cost(said),
        ]
        shown = " ".join(
            f"{'-' if v is None else f'{v:.3f}':>{w}}" for v, w in zip(values, (8, 8, 10, 9, 8, 8, 8), strict=True)
        )
        lines.append(f"  {name:22} {shown}")
    return lines


def body_of_size(items: Sequence[Item], at: int, size: int) -> Item:
    """Request `at` with texts of other rows put into the middle of its last string turn, about `size` bytes of JSON."""
    request = dict(items[at]["request"])
    missing = size - len(json.dumps(request, ensure_ascii=False).encode())
    pieces: list[str] = []
    number = at
    while missing > 0:
        number += 1
        piece = figure.text_of(items[number % len(items)]["request"])[:missing]
        pieces.append(piece)
        missing -= len(piece.encode()) + 1
    turns = list(request["messages"])
    last = turns[-1]
    if pieces and isinstance(last["content"], str):
        half = len(last["content"]) // 2
        text = last["content"][:half] + "\n".join(["", *pieces, ""]) + last["content"][half:]
        turns[-1] = {**last, "content": text}
    return {**request, "messages": turns}


def time_lines(model: LinearClassifier, items: Sequence[Item], weights: bytes, count: int) -> list[Line]:
    """Microseconds of one label on one core: the rows as they are, and bodies of two sizes; and the file's size."""
    lines = []
    plain = [at for at, item in enumerate(items) if isinstance(item["request"]["messages"][-1]["content"], str)]
    chosen = plain[:: max(1, len(plain) // count)]
    bodies: dict[str, list[Item]] = {"as they are": [items[at]["request"] for at in chosen]}
    for size in _SIZES:
        fitting = [at for at in chosen if len(json.dumps(items[at]["request"])) < size]
        bodies[f"{size // 1000} kB bodies"] = [body_of_size(items, at, size) for at in fitting]
    for name, held in bodies.items():
        for body in held[:50]:
            model.label(body)
        taken = []
        for _ in range(3):
            for body in held:
                started = time.perf_counter_ns()
                model.label(body)
                taken.append((time.perf_counter_ns() - started) / 1000)
        for at, least, aim in ((50, 300.0, 120.0), (99, 1000.0, 400.0)):
            shown = f"time of one label, p{at}, {name}, in µs ({len(held)} x 3)"
            lines.append(Line(shown, float(np.percentile(taken, at)), None, least, aim, True))
    lines.append(Line("weights, in MB", len(weights) / 1e6, None, 2.0, 0.5, True))
    return lines


def worst_errors(items: Sequence[Item], judged: Sequence[Judgement], most: int = 50) -> list[Item]:
    """The requests that went wrong by the widest margin in log-odds, at most three of one template."""

    def margin(one: Judgement) -> float:
        return abs(_log_odds(one.score) - _log_odds(one.threshold))

    wrong = [one for one in judged if one.said_hard != is_hard(items[one.at])]
    wrong.sort(key=lambda one: (-margin(one), one.at))
    taken: Counter[str] = Counter()
    listed = []
    for one in wrong:
        item = items[one.at]
        taken[item["template"]] += 1
        if taken[item["template"]] > 3:
            continue
        kept = {key: item.get(key) for key in ("id", "source", "template", "variant", "task", "lane", "difficulty")}
        said = {"said_lane": "sonnet" if one.said_hard else "haiku", "said_task": one.task}
        text = figure.text_of(item["request"])
        text = text if len(text) <= 1600 else text[:900] + "\n[...]\n" + text[-700:]
        listed.append({**kept, **said, "score": round(one.score, 4), "threshold": one.threshold, "text": text})
        if len(listed) == most:
            break
    return listed


def _log_odds(p: float) -> float:
    p = min(max(p, 1e-6), 1 - 1e-6)
    return math.log(p / (1 - p))


def by_group_lines(items: Sequence[Item], judged: Sequence[Judgement], key: str) -> list[str]:
    """Lane accuracy by task or source, the worst first."""
    hits: Mapping[str, list[bool]] = defaultdict(list)
    for one in judged:
        hits[items[one.at][key]].append(one.said_hard == is_hard(items[one.at]))
    listed = sorted(hits.items(), key=lambda pair: float(np.mean(pair[1])))
    return [f"  by {key}: " + ", ".join(f"{name} {np.mean(flags):.2f} ({len(flags)})" for name, flags in listed)]


def _run_all(jobs: Sequence[Job], workers: int, note: Callable[[str], None]) -> list[list[Judgement]]:
    """Every job's judgements in order; processes share nothing but the path of the data."""
    if workers < 2:
        return [run(job) for job in jobs]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(run, job) for job in jobs]
        for at, future in enumerate(waiting):
            future.result()
            note(f"{at + 1} of {len(jobs)} groups of folds")
        return [future.result() for future in waiting]


def main() -> int:
    """Fits the folds, prints the table, writes the worst errors where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA_FOLDER")
    parser.add_argument("--quick", action="store_true", help="fewer own wordings, passes and groups of templates")
    parser.add_argument("--errors", type=Path, help="write the 50 worst errors here, with their text (JSON lines)")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="weights for outcomes, times and size")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--source-groups", type=int, default=9)
    parser.add_argument("--skip-folds", action="store_true", help="outcomes, times and size only")
    arguments = parser.parse_args()
    started = time.monotonic()

    def note(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {text}", file=sys.stderr)

    weights = arguments.weights.read_bytes()
    model = LinearClassifier(weights)
    data = arguments.data / "dev.jsonl.gz"
    items = read_items(data)
    print("figure" + " " * 60 + "value  95 % interval      least / aim")
    if not arguments.skip_folds:
        plan = Plan(arguments.seed, 5, 30_000, 1) if arguments.quick else Plan(arguments.seed, 8, 45_000, 1)
        own, template_folds = (8_000, 2) if arguments.quick else (18_000, 3)
        with tempfile.TemporaryDirectory() as folder:
            vectors = Path(folder) / "vectors.npz"
            save_vectors(data, own, arguments.seed, vectors, arguments.workers)
            note("vectors of all words")
            job = partial(Job, data, template_folds=template_folds, plan=plan, own_count=own, vectors=vectors)
            groups = group_sources(items, arguments.source_groups)
            jobs = [job(group) for group in groups] + [job(frozenset()), job(frozenset(), given_split=True)]
            *by_source, by_template, by_split = _run_all(jobs, arguments.workers, note)
        unseen = sorted((one for part in by_source for one in part), key=lambda one: one.at)
        for title, judged, key in (
            (f"unseen sources and templates: {len(groups)} x {template_folds} folds", unseen, "source"),
            (f"unseen templates: {template_folds} folds", by_template, "template"),
            ("the given split: fitted on train, measured on dev", by_split, "template"),
        ):
            units = [items[one.at][key] for one in judged]
            print(f"{title}, {len(judged)} rows, intervals over {len(set(units))} {key}s")
            for line in fold_lines(items, judged, units, arguments.seed):
                print(line.text())
            print("\n".join(by_group_lines(items, judged, "task") + by_group_lines(items, judged, "source")))
        print("controls on unseen sources and templates")
        print("\n".join(rival_lines(items, unseen, arguments.seed)))
        if arguments.errors:
            listed = worst_errors(items, unseen)
            arguments.errors.write_text(
                "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in listed), encoding="utf-8"
            )
            note(f"wrote the {len(listed)} worst errors")
    print("outcomes, measured only, by the shipped weights")
    for line in outcome_lines(model, arguments.data, arguments.seed):
        print(line.text())
    print("times and size of the shipped weights")
    for line in time_lines(model, items, weights, 400):
        print(line.text())
    note("done")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
