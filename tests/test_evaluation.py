"""The shortlist and the choice of the winner, and the values that are reported."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
import torch

from ph2p.errors import UserError
from ph2p.evaluation.intervals import confidence_interval
from ph2p.evaluation.measurement import Measurement, diversity_of
from ph2p.evaluation.metrics import TABLE, Metric, gap_closed, regret, samples_to
from ph2p.evaluation.result import InversionResult, as_candidates, as_record, pictures
from ph2p.evaluation.texts import text_losses
from ph2p.evaluation.wording import fillers, repeats, whole_words, word_f1, word_precision, word_recall
from ph2p.files import as_json
from ph2p.inversion.batch import Batch
from ph2p.inversion.draws import make_draws
from ph2p.inversion.objectives import candidate_losses
from ph2p.inversion.selection import Candidate, Pool, make_rule, shortlist
from ph2p.inversion.validation import Validation, losses_on
from ph2p.models.painting import guidance_options, paint


def ids_of(generator, *tokens: str) -> list[int]:
    return generator.vocabulary.tokenizer.convert_tokens_to_ids(list(tokens))


@pytest.fixture
def visited(generator):
    """Five visited prompts: good, split in two, unfinished, the first again, and the last one."""
    tokens = [
        ["red</w>", "square</w>", "above</w>"],
        ["red</w>", "dog", "s</w>"],  # reads "red dogs", two tokens
        ["red</w>", "above</w>", "dog"],  # reads "red above dog</w>"
        ["red</w>", "square</w>", "above</w>"],
        ["blue</w>", "circle</w>", "below</w>"],
    ]
    return torch.tensor([ids_of(generator, *prompt) for prompt in tokens])


def test_the_shortlist_is_distinct_and_reads_back(generator, visited):
    losses = torch.tensor([0.5, 0.1, 0.3, 0.4, 0.9])
    found = shortlist(generator.vocabulary, visited, losses, [0, 1, 2, 3, 4], 10)
    texts = {candidate.text: candidate for candidate in found}
    assert len(found) == 3 and set(texts) == {"red square above", "red above dog", "blue circle below"}
    best = texts["red square above"]
    assert best.loss == pytest.approx(0.4) and best.epoch == 3  # of equal prompts the lowest loss counts
    for candidate in found:
        assert generator.vocabulary.encode(candidate.text) == list(candidate.token_ids)
    again = shortlist(generator.vocabulary, visited, losses, [0, 1, 2, 3, 4], 10)
    assert found == again


@pytest.mark.parametrize("losses", [[0.5, 0.1, 0.3, 0.4, 0.9], [0.5, 0.1, 0.3, 0.4, torch.nan]])
def test_a_short_shortlist_keeps_the_best_and_the_last(generator, visited, losses):
    found = shortlist(generator.vocabulary, visited, torch.tensor(losses), [0, 1, 2, 3, 4], 2)
    assert {candidate.text for candidate in found} == {"red above dog", "blue circle below"}


def test_equal_prompts_count_with_their_lowest_loss_even_the_last(generator, visited):
    losses = torch.tensor([0.2, 0.1, 0.3, 0.7])
    found = shortlist(generator.vocabulary, visited[:4], losses, [0, 1, 2, 3], 1)
    assert [(c.text, c.epoch) for c in found] == [("red square above", 0)]


def test_the_pool_keeps_each_images_best_with_their_epochs():
    token_ids = torch.arange(8).view(2, 4, 1)
    losses = torch.tensor([[0.3, 0.1, torch.nan, 0.9], [torch.inf, 0.5, 0.4, 0.6]])
    pool = Pool(token_ids, losses, torch.arange(4).expand(2, -1)).best(2)
    assert pool.token_ids.flatten(1).sort().values.tolist() == [[1, 3], [6, 7]]  # the newest is kept
    assert pool.epochs.sort().values.tolist() == [[1, 3], [2, 3]]


def test_losses_of_texts_and_candidates(generator, targets):
    latents = generator.encode_images(targets[0].image[None]).expand(2, -1, -1, -1)
    draws = make_draws(0, ["a", "b"], ("test",), 3, (500, 1000), generator.latent_shape)
    losses = text_losses(generator, latents, ["red dog", ""], draws)
    ids = torch.tensor(generator.vocabulary.encode("red dog"))
    both = candidate_losses(generator, latents, ids.expand(2, 1, -1), draws)
    assert losses[0] == pytest.approx(float(both[0]))
    assert losses[1] not in (pytest.approx(float(both[1])), losses[0])
    candidates = [Candidate(tuple(generator.vocabulary.encode(text)), text, 0, 0.0) for text in ("red dog", "blue dog")]
    scored = Validation(losses_on(generator, latents[:1], draws[:1])).ranked(candidates)
    assert {c.text for c in scored} == {"red dog", "blue dog"}
    assert scored[0].loss <= scored[1].loss
    assert {c.text: c.loss for c in scored}["red dog"] == pytest.approx(losses[0])


def test_finalists_are_ranked_by_what_the_model_paints(inverter_of):
    inverter = inverter_of("method=random", "seed=7", "method.selection.steps=3", "method.selection.finalists=3")
    generator, scorer = inverter.generator, inverter.scorer
    rule = make_rule(generator, scorer, inverter.cfg)
    candidates = [
        Candidate((0,), text, 0, loss, total=loss)
        for text, loss in [("red square", 0.5), ("blue dog", 0.505), ("green café", 0.51), ("small circle", 0.7)]
    ]
    painted = paint(generator, ["blue dog"], [7], 3, guidance_options(inverter.cfg.generator))
    goal = scorer.image_features(painted)[0]
    ranked = rule(goal, candidates)
    assert rule(goal, candidates) == ranked
    assert ranked[0].text == "blue dog" and ranked[0].clip_similarity == pytest.approx(1, abs=1e-5)
    similarity = [c.clip_similarity for c in ranked]
    assert similarity[:3] == sorted(similarity[:3], reverse=True)
    assert ranked[3] == candidates[3]  # 0.7 is beyond the margin: it is not rendered
    assert rule(goal, [candidates[0], candidates[3]])[0].text == "red square"
    # A prompt whose words cost less stands first with a higher loss: it stays a finalist, and nobody comes twice.
    dear = [replace(candidates[1], loss=0.52, total=0.53), replace(candidates[0], loss=0.5, total=0.6), candidates[3]]
    assert [c.text for c in rule(goal, dear)] == ["blue dog", "red square", "small circle"]


def test_a_distilled_model_renders_finalists_in_its_own_steps(inverter_of):
    for bound, steps in (("generator.most_steps=2", 2), ("generator.most_steps=null", 4)):
        inverter = inverter_of("method.selection.steps=4", "generator.steps=2", bound, "generator.guidance_scale=1")
        before = inverter.generator.counter.read().forward
        make_rule(inverter.generator, inverter.scorer, inverter.cfg)(
            torch.ones(8), [Candidate((0,), "red dog", 0, 0.5, total=0.5)]
        )
        assert inverter.generator.counter.read().forward - before == steps


def test_a_rule_is_chosen_by_its_name(inverter_of):
    calls = Counter()
    inverter = inverter_of("method=random", "method.selection.rule=loss")
    inverter.generator.denoiser.register_forward_hook(lambda *_: calls.update("x"))
    candidates = [Candidate((0,), "red square", 0, 0.5), Candidate((0,), "blue dog", 0, 0.5)]
    assert make_rule(inverter.generator, inverter.scorer, inverter.cfg)(torch.ones(8), candidates) == candidates
    assert not calls
    with pytest.raises(
        UserError, match=r"^method\.selection\.rule=best: choose one of renderings, loss, clip_text, released$"
    ):
        inverter_of("method.selection.rule=best")


# --- metrics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "expected"), [(0.2, 0), (0.6, 1), (0.1, -0.25), (0.4, 0.5), (1.0, 2)])
def test_regret(loss, expected):
    assert regret(loss, 0.2, 0.6) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a Crimson box", 1), ("red, square!", 1), ("red redder", 0.5), ("squares", 0), ("", 0), ("box box", 0.5)],
)
def test_word_recall_knows_synonyms_and_whole_words(prompt, expected):
    assert word_recall(prompt, [{"red", "crimson"}, {"square", "box"}]) == expected


ATTRIBUTES = [{"large", "big"}, {"red", "crimson"}, {"square", "box"}, {"left"}]


@pytest.mark.parametrize(
    ("prompt", "right", "wrong", "found"),
    [
        ("a large red square to the left of it", 4, 0, 4),  # what only joins others counts neither way
        ("big crimson box", 3, 0, 3),
        ("red red dog", 2, 1, 1),  # an attribute is found once, its words are right twice
        ("RED, dog. Square!", 2, 1, 2),
        ("dog cat", 0, 2, 0),
        ("reds 7 squared", 0, 2, 0),
        ("a photo of a dog, red background", 1, 1, 1),  # nor does what fits any picture
    ],
)
def test_word_precision_and_f1_are_those_of_counts(prompt, right, wrong, found):
    precision, recall = right / (right + wrong), found / 4
    assert word_precision(prompt, ATTRIBUTES) == pytest.approx(precision)
    assert word_recall(prompt, ATTRIBUTES) == pytest.approx(recall)
    expected = 0 if not found else 2 / (1 / precision + 1 / recall)
    assert word_f1(prompt, ATTRIBUTES) == pytest.approx(expected)


def test_a_prompt_without_words_has_no_precision():
    assert np.isnan([word_precision("the ,", ATTRIBUTES), whole_words(" "), repeats("7"), fillers("")]).all()
    assert word_f1("", ATTRIBUTES) == 0


def test_a_joining_word_that_is_true_counts():
    assert word_precision("on dog", [{"on"}]) == 0.5 and word_precision("in dog", [{"on"}]) == 0


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a large Red square", 1),
        ("rock'n cat-like ROCK, dog.", 1),
        ("zz qwrtp bcdfghi reD x7 #cat", 0),
        ("猫 dog", 1),
        ("cat </w> jpg dog", 0.5),
        ("we go", 1),
        ("dg go", 0.5),
    ],
)
def test_whole_words_look_like_those_of_a_dictionary(prompt, expected):
    assert whole_words(prompt) == pytest.approx(expected)


def test_repeats_and_fillers_are_parts_of_the_words():
    assert repeats("red dog Red, red") == 0.5 and repeats("red dog") == 0
    assert fillers("a dog on the mat") == pytest.approx(3 / 5)


def test_samples_to_a_regret_are_where_it_stays_below():
    random = np.random.default_rng(5)
    for _ in range(200):
        values = random.normal(0.1, 0.2, 8)
        curve = [(int(100 * k), float(value)) for k, value in enumerate(values)]
        after = [100 * k for k in range(8) if all(values[k:] <= 0.1)]
        assert samples_to(0.1, curve) == (min(after) if after else None)
        assert samples_to(0.1, curve[::-1]) == samples_to(0.1, curve)
    assert samples_to(0, []) is None and samples_to(0, [(5, float("nan"))]) is None


def test_confidence_interval_of_a_normal_mean():
    values = np.random.default_rng(3).normal(5, 2, 400)
    low, high = confidence_interval(values)
    spread = 1.96 * values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - spread, abs=0.1 * spread)
    assert high == pytest.approx(values.mean() + spread, abs=0.1 * spread)
    narrow = confidence_interval(values, level=0.5)
    assert low < narrow[0] < values.mean() < narrow[1] < high
    assert confidence_interval(values) == (low, high)
    middle = confidence_interval(values.tolist(), np.median)
    assert middle[0] < np.median(values) < middle[1]
    assert confidence_interval([2.0]) == confidence_interval([2.0, 2.0]) == (2.0, 2.0)


@pytest.mark.parametrize(
    ("loss", "caption", "expected"),
    [
        (0.3, 0.3, 1),
        (0.8, 0.3, 0),
        (0.55, 0.3, 0.5),
        (0.9, 0.3, -0.2),
        (0.4, None, 0.5),
        (0.8, None, 0),
        (0.9, None, -0.125),
        (0.9, 0.85, -0.125),  # a caption that is no better than no words is no aim
        (0.4, 0.8, 0.5),
    ],
)
def test_the_gap_is_closed_from_no_words_to_the_caption(loss, caption, expected):
    assert gap_closed(loss, 0.8, caption) == pytest.approx(expected)


def test_every_metric_grades_by_its_own_direction():
    show = str
    low = Metric("a", "a", "", "lower", lambda r: 0.0, show, "", (), bands=(0.1, 0.5))
    high = replace(low, better="higher", bands=(0.9, 0.5))
    assert [low.grade(value) for value in (0.0, 0.1, 0.4, 0.6, None)] == ["good", "good", "fair", "poor", ""]
    assert [high.grade(value) for value in (1.0, 0.9, 0.6, 0.4)] == ["good", "good", "fair", "poor"]


def test_the_table_is_read_without_torch():
    code = "import sys, ph2p.evaluation.metrics, ph2p.report.table; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- results ------------------------------------------------------------------------------------------------------


@pytest.fixture
def result():
    known = dict(image_id="cat.png", source="cat.png", method="ph2p", seed=0, prompt="large red square", token_ids=[1])
    values = dict(loss=0.4, loss_empty=0.8, loss_caption=0.3, clip_similarity=0.9, clip_similarity_caption=0.95)
    cost = dict(forward_samples=1200, backward_samples=800, evaluation_samples=10, seconds=2.0, peak_memory=100)
    return InversionResult(**known, **values, **cost)


def test_a_record_holds_every_metric_of_the_table(result):
    record = json.loads(as_json(as_record(result)))
    assert {metric.key for metric in TABLE} <= record.keys()
    assert record["gap_closed"] == pytest.approx(0.8) and record["regret"] == pytest.approx(0.2)
    assert record["samples"] == 2000 and record["word_recall"] is None and record["warnings"] == []
    assert record["status"] == "ok" and "renderings" not in record
    assert type(record["evaluation_samples"]) is type(record["peak_memory"]) is int
    result.loss = 0.3  # nothing is remembered from before
    assert result.metrics["gap_closed"] == result.gap_closed == pytest.approx(1) and result.regret == 0


def test_a_new_metric_is_one_line_of_the_table(result, monkeypatch):
    line = Metric("length", "length", "words", "lower", lambda r: float(len(r.prompt.split())), str, "", ("card",))
    monkeypatch.setattr("ph2p.evaluation.metrics.TABLE", (*TABLE, line))
    assert as_record(result)["length"] == 3


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"loss": 0.945, "loss_empty": 0.842}, "no better than no words: loss 0.9450, of an empty prompt 0.8420"),
        ({"loss": 0.8}, "no better than no words"),
        ({"loss": 0.8, "loss_caption": None}, "no better than no words"),
        ({"prompt": "zz q .. 77"}, "holds no real word"),
        ({"prompt": ""}, "holds no real word"),
        ({"prompt": "dog red Dog dog"}, "repeats itself: “dog” 3 times"),
        ({"clip_similarity": 0.31}, "renderings do not show the picture: CLIP similarity 0.31"),
        ({"clip_similarity": 0.95, "diversity": 0.001}, "renderings are nearly one picture: diversity 0.001"),
        ({"prompt": "red xkcdq rT3 zzgh"}, "mostly junk: 75% of its pieces look like no word"),
    ],
)
def test_what_a_reader_should_know_is_a_warning_everywhere(result, changes, warning):
    assert result.warnings == [] and "warning" not in repr(result)
    bad = replace(result, **changes)
    assert len(bad.warnings) == 1 and warning in bad.warnings[0]
    assert warning in repr(bad) and as_record(bad)["warnings"] == bad.warnings


@pytest.mark.parametrize(
    "changes",
    [
        {"clip_similarity": 0.5},
        {"clip_similarity": 0.85, "diversity": 0.001},  # alike, but not the picture
        {"clip_similarity": 0.97, "diversity": 0.05},  # the picture, in many ways
        {"clip_similarity": 0.97, "diversity": None},  # of one rendering nothing is known
        {"prompt": "red xkcdq"},
        {"prompt": "dog red dog"},
        {"loss": 0.2},  # better than the true caption
    ],
)
def test_what_is_only_middling_is_no_warning(result, changes):
    assert replace(result, **changes).warnings == []


def test_a_sentence_with_several_articles_does_not_repeat_itself(result):
    assert not replace(result, prompt="a dog and a cat below a moon").warnings


def test_words_of_other_scripts_are_words(result):
    assert replace(result, prompt="猫 と 犬").warnings == []


def test_a_result_shows_itself_in_one_line(result):
    text = repr(replace(result, target=torch.zeros(3, 8, 8)))
    assert text == "InversionResult('cat.png', 'large red square', loss 0.4000, gap closed 80%)"


def test_files_beside_a_record(result):
    found = [Candidate((1, 2), "red dog", 3, 0.5, 0.9), Candidate((3,), "cat", 1, 0.6)]
    result = replace(result, candidates=found, loss_curve=[1.0, 0.5], renderings=torch.zeros(2, 3, 4, 4))
    content = as_candidates(result)
    assert content["loss_curve"] == [1.0, 0.5] and content["candidates"][0]["token_ids"] == [1, 2]
    assert [row["prompt"] for row in content["candidates"]] == ["red dog", "cat"]
    assert set(pictures(result)) == {"renderings"}


# --- measurement ---------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """What is needed to measure, and a way to do it for prompts that were given."""

    inverter: object
    targets: list

    def __call__(self, *texts: str) -> list[InversionResult]:
        generator, scorer, cfg = self.inverter.generator, self.inverter.scorer, self.inverter.cfg
        batch = Batch(self.targets[: len(texts)], generator, scorer)
        encode = generator.vocabulary.encode
        found = [[Candidate(tuple(encode(text)) if text else (), text, 0, 0.0)] for text in texts]
        curves = torch.arange(len(texts) * 2.0).view(len(texts), 2)
        return Measurement(generator, scorer, cfg)(batch, found, None, curves, 1.5)


@pytest.fixture
def measured(inverter_of, targets):
    return Measured(inverter_of("evaluation.renders=2", "evaluation.draws=3", "generator.steps=2"), targets)


def test_a_measurement_counts_every_sample_and_says_what_it_was_made_with(measured):
    counter = measured.inverter.generator.counter
    before = counter.forward
    first, second = measured("red dog", "blue dog")
    assert first.evaluation_samples + second.evaluation_samples == counter.forward - before > 0
    assert first.evaluation_samples == second.evaluation_samples
    with_ = first.measured_with
    assert (with_["draws"], with_["renderings"], with_["steps"]) == (3, 2, 2)
    assert with_["timesteps"] == list(measured.inverter.cfg.evaluation.timesteps) and with_["scorer"]
    assert first.renderings.shape == first.caption_renderings.shape == (2, 3, 16, 16)
    assert first.loss_curve == [0, 1] and second.loss_curve == [2, 3] and first.seconds == 1.5
    assert first.content == measured.targets[0].key != second.content
    assert first.loss_soft is None


def test_a_measurement_is_the_same_again_and_alone(measured):
    first, second = measured("red dog", "blue dog")
    (alone,) = measured("red dog")
    for one, other in ((first, alone), (first, measured("red dog", "green café")[0])):
        for name, value in one.metrics.items():
            if name not in ("peak_memory",):
                assert other.metrics[name] == (value if value is None else pytest.approx(value, rel=1e-6)), name
    assert first.loss != second.loss and torch.allclose(first.renderings, alone.renderings, atol=1e-5)


def test_likeness_and_diversity_are_those_of_the_scorers_features(measured):
    scorer, target = measured.inverter.scorer, measured.targets[0]
    measured.inverter.cfg = replace(
        measured.inverter.cfg, evaluation=replace(measured.inverter.cfg.evaluation, renders=3)
    )
    (result,) = measured("red dog")
    painted = [scorer.image_features(picture[None])[0].double() for picture in result.renderings]
    pairs = [(0, 1), (0, 2), (1, 2)]
    alike = [float(painted[a] @ painted[b] / painted[a].norm() / painted[b].norm()) for a, b in pairs]
    assert result.diversity == pytest.approx(1 - sum(alike) / 3, abs=1e-6) and result.diversity > 1e-5
    text, picture = scorer.text_features(["red dog"])[0], scorer.image_features(target.image[None])[0]
    assert result.clip_text == pytest.approx(float(text @ picture), abs=1e-6)
    assert {"clip_text", "diversity", "word_f1", "whole_words"} <= as_record(result).keys()
    assert diversity_of(torch.ones(1, 4)) is None


def test_no_words_close_no_gap(measured):
    (nothing,) = measured("")
    assert nothing.loss == nothing.loss_empty and nothing.gap_closed == 0
    assert any("no better than no words" in warning for warning in nothing.warnings)


def test_every_field_of_a_result_is_in_its_record_or_beside_it(measured):
    (result,) = measured("red dog")
    beside = {
        "loss_curve",
        "search_curve",
        "trail",
        "candidates",
        "target",
        "renderings",
        "caption_renderings",
        "words",
    }
    assert {field.name for field in fields(result)} - beside <= as_record(result).keys()
    assert not beside & as_record(result).keys()
    assert set(pictures(result)) == {"target", "renderings", "caption_renderings"}
