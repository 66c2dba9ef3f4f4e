"""The shortlist and the choice of the winner, and the figures that are reported."""

from collections import Counter

import numpy as np
import pytest
import torch

from ph2p.errors import UserError
from ph2p.evaluation.metrics import ImageSimilarity, confidence_interval, regret, word_recall
from ph2p.evaluation.texts import text_losses
from ph2p.inversion.draws import make_draws
from ph2p.inversion.objectives import candidate_losses
from ph2p.inversion.selection import Candidate, Pool, make_rule, shortlist, validate_candidates
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
    scored = validate_candidates(generator, latents[:1], candidates, draws[:1])
    assert {c.text for c in scored} == {"red dog", "blue dog"}
    assert scored[0].loss <= scored[1].loss
    assert {c.text: c.loss for c in scored}["red dog"] == pytest.approx(losses[0])


def test_finalists_are_ranked_by_what_the_model_paints(inverter_of):
    inverter = inverter_of("method=random", "seed=7", "method.selection.steps=3")
    generator, scorer = inverter.generator, inverter.scorer
    rule = make_rule(generator, scorer, inverter.cfg)
    candidates = [
        Candidate((0,), text, 0, loss)
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


def test_a_rule_is_chosen_by_its_name(inverter_of):
    calls = Counter()
    inverter = inverter_of("method=random", "method.selection.rule=loss")
    inverter.generator.denoiser.register_forward_hook(lambda *_: calls.update("x"))
    candidates = [Candidate((0,), "red square", 0, 0.5), Candidate((0,), "blue dog", 0, 0.5)]
    assert make_rule(inverter.generator, inverter.scorer, inverter.cfg)(torch.ones(8), candidates) == candidates
    assert not calls
    with pytest.raises(UserError, match=r"^method\.selection\.rule=best: choose one of renderings, loss$"):
        inverter_of("method.selection.rule=best")


# --- figures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "expected"), [(0.2, 0), (0.6, 1), (0.1, -0.25), (0.4, 0.5), (1.0, 2)])
def test_regret(loss, expected):
    assert regret(loss, 0.2, 0.6) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a Crimson box", 1), ("red, square!", 1), ("red redder", 0.5), ("squares", 0), ("", 0), ("box box", 0.5)],
)
def test_word_recall_knows_synonyms_and_whole_words(prompt, expected):
    assert word_recall(prompt, [{"red", "crimson"}, {"square", "box"}]) == expected


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


def test_image_similarity_is_the_mean_over_images():
    painted, target = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
    metric = ImageSimilarity()
    metric.update(painted[:2], target[:2])
    metric.update(painted[2:], target[2:])
    normal = [features / features.norm(dim=1, keepdim=True) for features in (painted, target)]
    assert float(metric.compute()) == pytest.approx(float((normal[0] * normal[1]).sum(1).mean()), abs=1e-6)
