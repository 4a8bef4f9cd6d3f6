"""The judgement, with the shipped weights."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.classify.correction import Correction, write_correction
from router.classify.features import extract, names
from router.classify.label import HARD_TASKS, PLACES, STRUCTURED_TASKS, TASKS
from router.classify.model import MIX, LinearClassifier
from router.classify.weights import FIELDS, HEADS, MAGIC, pack_weights
from router.errors import SettingsError

WEIGHTS = (Path(__file__).parents[2] / "router" / "data" / "classifier.bin").read_bytes()
SAMPLES = [
    json.loads(line) for line in (Path(__file__).parent / "samples.jsonl").read_text(encoding="utf-8").splitlines()
]


@pytest.fixture(scope="module")
def model():
    return LinearClassifier(WEIGHTS)


def body(text, **fields):
    return {"model": "m", "max_tokens": 500, "messages": [{"role": "user", "content": text}], **fields}


def test_samples_of_our_own_get_their_lane_and_mostly_their_task(model):
    """Sixty requests that a person would not hesitate about; hard work never goes to the small model here."""
    labels = [(sample, model.label(sample["request"])) for sample in SAMPLES]
    lanes = [model.lane(label) == sample["lane"] for sample, label in labels]
    assert sum(lanes) / len(lanes) >= 0.93
    assert [s["id"] for s, label in labels if s["lane"] == "sonnet" and model.lane(label) == "haiku"] == []
    assert sum(label.task == sample["task"] for sample, label in labels) / len(labels) >= 0.85


@given(
    st.dictionaries(
        st.sampled_from(["messages", "system", "tools", "max_tokens", "thinking"]),
        st.none()
        | st.integers()
        | st.text(max_size=40)
        | st.lists(
            st.dictionaries(st.sampled_from(["role", "content", "type", "text"]), st.text(max_size=40) | st.none())
        ),
    )
)
@settings(max_examples=100, deadline=None)
def test_every_body_gets_a_label_in_range(odd):
    """No field of any type raises; all three numbers are probabilities."""
    label = LABELLER.label(odd)
    assert label.task in TASKS
    assert 0 <= label.difficulty <= 1
    assert 0 <= label.confidence <= 1
    assert 0 <= label.p_hard <= 1


LABELLER = LinearClassifier(WEIGHTS)


@pytest.mark.parametrize(
    "request_body",
    [
        {},
        {"messages": []},
        body(""),
        body("zxqv"),
        body([{"type": "image", "source": {}}]),
        body("\u202e\ud800" * 9),
        body("q" * 1_000_000),
    ],
    ids=["nothing", "no-turn", "empty", "unknown-word", "image", "surrogates", "one-letter"],
)
def test_where_nothing_is_known_the_big_model_is_asked(model, request_body):
    """In doubt, hard: low confidence, and the lane is the big model's."""
    label = model.label(request_body)
    assert model.lane(label) == "sonnet"
    assert label.confidence < 0.8


def test_the_band_and_the_threshold_meet(model):
    """Difficulty leans on the lane: a clear case lies on its own side of 0.5."""
    easy = model.label(body("Translate the following text into French:\n\nThe boat is late today."))
    hard = model.label(body("Prove that there are infinitely many primes, then bound the gap between them."))
    assert (easy.task, easy.difficulty < 0.5) == ("translation", True)
    assert (hard.task in HARD_TASKS, hard.difficulty > 0.5) == (True, True)


@pytest.mark.parametrize(
    "sample",
    [s for s in SAMPLES if s["task"] in ("summarization", "extraction") and "Pavla" in json.dumps(s)],
    ids=lambda s: s["id"],
)
def test_begging_inside_a_document_does_not_move_the_lane(model, sample):
    """A sentence in the middle of the text that asks for the big model changes nothing."""
    request = json.loads(
        json.dumps(sample["request"]).replace(
            "Please send a mechanic", "This prompt needs the most powerful model. Please send a mechanic"
        )
    )
    assert model.lane(model.label(request)) == model.lane(model.label(sample["request"]))


def test_the_same_content_goes_where_the_instruction_sends_it(model):
    """A maths problem is hard to solve and easy to translate."""
    problem = "A cyclist rides 18 km in 50 minutes and back at three quarters of her speed. How long is she away?"
    assert model.lane(model.label(body(problem))) == "sonnet"
    assert (
        model.lane(model.label(body(f"Translate this exercise into Spanish. Do not solve it.\n\n{problem}"))) == "haiku"
    )


def test_explain_names_places_and_features_that_add_up(model):
    """The label is the same as without reasons; the heaviest feature comes first."""
    request = body(
        "Summarize the following report in two sentences.\n\nThe bridge is closed.",
        system="You are a helpful assistant.",
    )
    explanation = model.explain(request)
    assert explanation.label == model.label(request)
    assert len(explanation.label.places) == len(PLACES)
    assert sum(explanation.attention) == pytest.approx(1)
    assert max(explanation.attention) == explanation.attention[PLACES.index("first")]
    weights = [abs(weight) for _, weight in explanation.features]
    assert weights == sorted(weights, reverse=True)
    assert len(weights) == 12


CALIBRATION = {
    "task_scale": 1,
    "lane_scale": 1,
    "lane_bias": 0,
    "doubt": 1,
    "threshold": 0.5,
    "difficulty_zero": 0,
    "difficulty_hard": 0,
}


def small(features, rows, bias=0.0, unit=1.0):
    """A classifier of a few features; `rows` are the bytes of their weights."""
    header = {"unit": [unit] * FIELDS, "bias": [bias] * HEADS, "gate_bias": [0.0] * 5, "calibration": CALIBRATION}
    return LinearClassifier(pack_weights(header, features, rows))


def test_small_weights_give_the_sums_they_should():
    """Packed fields add up exactly, negative ones too."""
    rows = bytes(value % 256 for value in [-3] * FIELDS + [5] * 11 + [-127, 127, 0])
    measured = small([b"#turns=none", b"#system=0"], rows, bias=1.0, unit=0.5).measure({})
    assert measured.tasks == pytest.approx([1.0 + 0.15 * 0.5 * 2] * 11)
    assert measured.depth == pytest.approx(1.0 + 0.15 * 0.5 * 124)
    assert measured.evidence == 0


def test_more_rows_than_a_field_can_add_up_are_still_exact():
    """Every feature known and at the end of its range, more of them than sixteen bits hold."""
    text = " ".join(a + b for a in "bcdfghjklm" for b in "aeiouyznpqrstv")
    features = names(extract({"system": text}).places[0])
    assert len(features) > 258
    for weight in (127, -127):
        full = small(features, bytes([weight % 256]) * FIELDS * len(features))
        assert full.measure({"system": text}).tasks == pytest.approx([MIX * weight * len(features) ** 0.5] * 11)


def test_the_place_with_the_higher_gate_decides():
    """The same words say the opposite in the document; what looks like an instruction is heard."""
    gate = [0] * HEADS + [127]
    rows = bytes(value % 256 for value in [*([9] * HEADS), 0, *([-9] * HEADS), 0, *gate])
    told = small([b"solve", b"shorten", b"please"], rows)
    assert told.measure(body("please shorten\n\nsolve")).tasks[0] < 0
    assert told.measure(body("shorten\n\nplease solve")).tasks[0] > 0


@pytest.mark.parametrize("broken", [b"", b"x", MAGIC, MAGIC + b"123", MAGIC + zlib.compress(b"{}\n"), WEIGHTS[:-50]])
def test_unreadable_weights_say_so(broken):
    """One error of ours, with the next step."""
    with pytest.raises(SettingsError, match="weights cannot be read"):
        LinearClassifier(broken)


@pytest.mark.parametrize(
    "broken", [b"", b"[]", b'{"version": 2}', b'{"version": 1, "lane_scale": 1, "lane_bias": 0, "task_bias": {"x": 1}}']
)
def test_an_unreadable_correction_says_so(broken):
    """Unknown versions and tasks are refused, not ignored."""
    with pytest.raises(SettingsError, match="correction cannot be read"):
        LinearClassifier(WEIGHTS, broken)


def test_a_correction_shifts_lane_and_task(model):
    """The second argument changes the judgement, the weights stay."""
    request = body("Please have a look at the quarterly figures.")
    bias = tuple(9.0 if task == STRUCTURED_TASKS[2] else 0.0 for task in TASKS)
    corrected = LinearClassifier(WEIGHTS, write_correction(Correction(1.0, -8.0, bias)))
    assert corrected.label(request).task == STRUCTURED_TASKS[2]
    assert corrected.label(request).p_hard < model.label(request).p_hard
