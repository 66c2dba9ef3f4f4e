"""How prompts read: the language model's part in the choice of the winner and in its wording."""

from collections import Counter
from dataclasses import replace
from itertools import permutations

import pytest
import torch

from ph2p.config.budget import plan
from ph2p.config.compose import load_config
from ph2p.errors import UserError
from ph2p.inversion.fluency import BONUSES, Fluency, make_fluency, reworded
from ph2p.inversion.price import Price
from ph2p.inversion.selection import Candidate
from ph2p.inversion.validation import Validation
from ph2p.models.language import JOINING, TrigramModel

SENTENCE = "a small red dog above a blue circle"
FLUENCY = ["method.fluency=0.05", "method.language_model=world"]


@pytest.fixture(scope="module")
def model():
    return TrigramModel([SENTENCE] * 5 + ["a red square", "a blue dog", "small red dog above blue"])


def candidates_of(generator, *texts: str) -> list[Candidate]:
    return [Candidate(tuple(generator.vocabulary.encode(text)), text, 3, 0.0) for text in texts]


def bags(generator, losses: dict[str, float], asked: list):
    """Losses in which order does not matter: those of the words, 1 of no words."""
    known = {tuple(sorted(generator.vocabulary.encode(text))): loss for text, loss in losses.items()}

    def of(prompts):
        asked.extend(prompts)
        return [known.get(tuple(sorted(prompt)), 1.0) for prompt in prompts]

    return of


# --- rewordings ----------------------------------------------------------------------------------------------------


def worth(model, text: str, words: list[str], bonus: float) -> float:
    """What the beam search looks for, counted from the text itself."""
    kept = sum((Counter(text.split()) & Counter(words)).values())
    return model.surprises([text])[0] - bonus * kept


@pytest.mark.parametrize("bonus", BONUSES)
def test_the_best_rewording_of_all_is_found(model, bonus):
    bonus *= model.chance
    words, joining = ["dog", "red", "small"], ("a", "above")
    pieces = [*words, *joining, *joining]
    every = {" ".join(text) for size in range(1, 6) for text in permutations(pieces, size) if set(text) & set(words)}
    best = min(sorted(every), key=lambda text: worth(model, text, words, bonus))
    found = Fluency(1.0, model, joining).rewordings("dog red small")
    assert best in found[: len(BONUSES)] and len(found) == len(set(found)) > 8
    for text in found:
        rest = [word for word in text.split() if word not in joining]
        assert rest and not Counter(rest) - Counter(words) and text != "dog red small"


def test_a_sentence_comes_back_from_its_shuffled_words(model):
    words = SENTENCE.split()
    for seed in range(3):
        order = torch.randperm(len(words), generator=torch.Generator().manual_seed(seed)).tolist()
        assert SENTENCE in Fluency(1.0, model).rewordings(" ".join(words[k] for k in order))[:8]


def test_words_that_do_not_fit_are_left_out(model):
    found = Fluency(1.0, model, ("a", "above")).rewordings("café circle blue dog red small blue")[:8]
    assert "a small red dog above a blue circle" in found and not any("café" in text for text in found[:2])


def test_a_cost_is_the_weighted_surprise(model):
    texts = ["a red dog", "dog"]
    assert Fluency(0.5, model).costs(texts) == pytest.approx([0.5 * s for s in model.surprises(texts)])
    assert Price(0.1, Fluency(0.5, model))([3, 1], texts) == pytest.approx(
        [0.3 + 0.5 * model.surprises(texts)[0], 0.1 + 0.5 * model.surprises(texts)[1]]
    )


def test_rewordings_are_prompts_of_the_vocabulary(generator, model):
    vocabulary = generator.vocabulary
    allowed = {vocabulary.decode([token]) for token in vocabulary.allowed_ids.tolist()}
    fluency = make_fluency(load_config(FLUENCY).method, vocabulary)
    assert set(fluency.joining) == JOINING & allowed
    text = "blue circle red dog small"
    whole, short = (reworded(fluency, vocabulary, text, 8, bounds) for bounds in ((1, 20), (2, 3)))
    assert len(whole) == 8 and all(vocabulary.repair(ids) == ids for ids in whole)
    assert short and all(2 <= len(ids) <= 3 for ids in short)
    assert reworded(None, vocabulary, text, 8, (1, 20)) == [] == reworded(fluency, vocabulary, text, 0, (1, 20))
    needed = vocabulary.choosing(["red"], [])
    kept = reworded(fluency, needed, text, 8, (1, 20))
    assert kept and all(needed.required_ids.item() in ids for ids in kept)


def test_a_rewording_may_hold_joining_words(generator, model):
    fluency = Fluency(1.0, model, ("above", "below"))
    found = reworded(fluency, generator.vocabulary, "circle blue dog red small", 8, (1, 20))
    assert "small red dog above" in " | ".join(generator.vocabulary.decode(ids) for ids in found)


# --- the winner ----------------------------------------------------------------------------------------------------


def test_fluency_decides_by_what_it_is_worth(generator, model):
    texts = ["dog red small", "a red square", "blue café"]
    given = candidates_of(generator, *texts)
    surprise = model.surprises(texts)
    weight, gain = 0.001, 0.5  # no words: 1; the best: 0.5
    even = 0.5 + weight * gain * (surprise[0] - surprise[1])  # where both cost the same
    for loss, first in ((0.5, texts[1]), (even - 1e-6, texts[1]), (even + 1e-6, texts[0])):
        losses = bags(generator, {texts[0]: 0.5, texts[1]: loss, texts[2]: 0.9}, [])
        ranked = Validation(losses, Price(fluency=Fluency(weight, model))).ranked(given)
        assert ranked[0].text == first and ranked[2].text == texts[2]
        assert {c.text: c.loss for c in ranked} == {texts[0]: 0.5, texts[1]: loss, texts[2]: 0.9}
        assert Validation(losses).ranked(given)[0].text == texts[0]


def test_the_dial_means_the_same_on_a_model_of_other_losses(generator, model):
    given = candidates_of(generator, "dog red small", "a red square")
    found = []
    for scale in (1e-3, 1.0, 1e3):

        def losses(prompts, scale=scale):
            return [scale * {0: 1.0}.get(len(p), 0.5 if tuple(p) == given[0].token_ids else 0.51) for p in prompts]

        prices = [Price(fluency=Fluency(weight, model)) for weight in (1e-4, 1e-3, 1e-2, 1.0)]
        found.append([Validation(losses, price).ranked(given)[0].text for price in prices])
    assert found[0] == found[1] == found[2] and len(set(found[0])) == 2


def test_where_order_does_not_matter_the_language_model_orders_the_words(generator, model):
    shuffled, other = "blue red above small dog", "blue café"
    asked: list = []
    losses = bags(generator, {shuffled: 0.4, other: 0.6}, asked)
    validation = Validation(losses, Price(fluency=Fluency(0.005, model)))
    ranked = validation.ranked(candidates_of(generator, shuffled, other))
    assert len(asked) == 3 and asked[-1] == ()
    found = validation.reworded(ranked, 6, generator.vocabulary, (5, 5))
    assert found[0].text == "small red dog above blue" and {shuffled, other} < {c.text for c in found}
    assert [c.total for c in found] == sorted(c.total for c in found)
    assert found[0].token_ids == tuple(generator.vocabulary.encode(found[0].text)) and found[0].epoch == 3
    assert len(asked) == 3 + 6
    assert Validation(losses).reworded(ranked, 6, generator.vocabulary, (1, 20)) == ranked


def test_where_order_matters_the_loss_decides(generator, model):
    (given,) = candidates_of(generator, "dog red above small blue")

    def losses(prompts):
        return [1.0 if not prompt else 0.4 if tuple(prompt) == given.token_ids else 0.6 for prompt in prompts]

    validation = Validation(losses, Price(fluency=Fluency(0.001, model)))
    found = validation.reworded(validation.ranked([given]), 8, generator.vocabulary, (5, 5))
    assert replace(found[0], total=given.total) == replace(given, loss=0.4, gap_closed=0.6) and len(found) > 1


def test_what_has_no_finite_loss_never_wins(generator, model):
    given = candidates_of(generator, "dog red small", "a red square")

    def losses(prompts):
        return [{0: 1.0}.get(len(p), 0.5 if tuple(p) == given[0].token_ids else torch.inf) for p in prompts]

    validation = Validation(losses, Price(fluency=Fluency(1.0, model)))
    ranked = validation.ranked(given)
    assert [c.text for c in ranked] == ["dog red small"]
    assert validation.reworded(ranked, 4, generator.vocabulary, (1, 20))[0].text == "dog red small"


# --- whole inversions ----------------------------------------------------------------------------------------------


def test_the_dial_at_0_changes_nothing_and_its_cost_is_planned(inverter_of, targets):
    words = ["method=random", "method.restarts=6", "method.selection.rule=loss", "method.prompt_length=6"]
    plain, silent = (inverter_of(*words, *more)(targets) for more in ([], ["method.language_model=world"]))
    inverter = inverter_of(*words, *FLUENCY)
    choice = inverter.cfg.method.selection
    results = inverter(targets)
    assert plan(replace(inverter.cfg.method, budget=(6 + 1 + choice.rewordings) * choice.draws))
    with pytest.raises(UserError, match=r"^method\.budget="):
        plan(replace(inverter.cfg.method, budget=(6 + 1 + choice.rewordings) * choice.draws - 1))
    for old, same, new in zip(plain, silent, results, strict=True):
        assert (old.prompt, old.loss, old.forward_samples) == (same.prompt, same.loss, same.forward_samples)
        assert old.forward_samples == 6 * choice.draws and len(old.candidates) == 6
        assert new.forward_samples <= (6 + 1 + choice.rewordings) * choice.draws
        assert inverter.generator.vocabulary.encode(new.prompt) == new.token_ids
        alone = inverter([next(t for t in targets if t.image_id == new.image_id)])[0]
        assert (alone.prompt, alone.forward_samples) == (new.prompt, new.forward_samples)
    assert any(new.forward_samples == (6 + 1 + choice.rewordings) * choice.draws for new in results)


@pytest.mark.parametrize("rule", ["loss", "clip_text"])
def test_with_a_search_lengths_and_costs_stay_within_their_bounds(inverter_of, targets, rule):
    """The random model reads fewer tokens than the search's limit says."""
    words = [
        "method=greedy",
        "method.budget=700",
        "method.restarts=4",
        "method.prompt_length=6",
        "method.search.starts=2",
    ]
    words += [
        "method.search.starts=2",
        "method.search.min_length=3",
        f"method.selection.rule={rule}",
        "method.selection.shortlist=4",
    ]
    inverter = inverter_of(*words, *FLUENCY)
    most, method = inverter.generator.max_prompt_length, inverter.cfg.method
    assert most < method.search.max_length
    for result in inverter(targets):
        assert 3 <= len(result.token_ids) <= most
        assert result.forward_samples + result.backward_samples <= method.budget


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["method.fluency=-1"], r"method\.fluency=-1\.0: give a number of at least 0"),
        (
            ["method=ph2p", "method.selection.rule=clip_text", *FLUENCY],
            r"method\.fluency=0\.05: give 0, or another method\.selection\.rule than clip_text",
        ),
        (["method=caption", *FLUENCY], r"method\.fluency=0\.05: give 0: captions stay as written"),
        (["method.selection.rewordings=-1"], r"method\.selection\.rewordings=-1: give a whole number of at least 0"),
    ],
)
def test_what_does_not_fit_is_one_line(words, line):
    with pytest.raises(UserError, match=f"^{line}"):
        load_config(words)


def test_a_language_model_that_is_not_there_is_named_before_anything_is_inverted(inverter_of):
    with pytest.raises(UserError, match=r"^method\.language_model=no/such: "):
        inverter_of("method.fluency=0.1", "method.language_model=no/such")
