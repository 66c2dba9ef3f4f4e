"""How prompts read: the language model's part in the choice of the winner and in the order of its words."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch

from ph2p.config.budget import plan
from ph2p.config.compose import load_config
from ph2p.errors import UserError
from ph2p.inversion.fluency import Fluency
from ph2p.inversion.selection import Candidate
from ph2p.inversion.validation import EQUAL, Validation
from ph2p.models.language import TrigramModel

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


# --- the language model's orders -----------------------------------------------------------------------------------


def test_of_all_orders_the_best_is_found(model):
    words = ["dog", "red", "small", "a", "above"]
    found = Fluency(1.0, model).orders(" ".join(words), 4)
    every = sorted(" ".join(order) for order in permutations(words))
    assert found[0] == min(every, key=lambda text: model.surprises([text])[0]) == "a small red dog above"
    assert len(found) == 4 == len(set(found)) and all(sorted(text.split()) == sorted(words) for text in found)
    (now,) = model.surprises([" ".join(words)])
    assert max(model.surprises(found)) < now
    assert Fluency(1.0, model).orders(found[0], 4) == []  # there is no better one


def test_a_sentence_comes_back_from_its_shuffled_words(model):
    words = SENTENCE.split()
    for seed in range(3):
        order = torch.randperm(len(words), generator=torch.Generator().manual_seed(seed)).tolist()
        assert Fluency(1.0, model).orders(" ".join(words[k] for k in order), 8)[0] == SENTENCE


def test_a_cost_is_the_surprise_of_a_word(model):
    texts = ["a red dog", "dog"]
    expected = [0.5 * s / n for s, n in zip(model.surprises(texts), (3, 1), strict=True)]
    assert Fluency(0.5, model).costs(texts) == pytest.approx(expected)


# --- the winner ----------------------------------------------------------------------------------------------------


def test_of_equally_good_prompts_the_fluent_one_wins(generator, model):
    texts = ["dog red small", "a red square", "blue café"]
    given = candidates_of(generator, *texts)
    for loss, first in ((0.5, texts[1]), (0.5 + 0.9 * EQUAL / 2, texts[1]), (0.5 + 1.1 * EQUAL / 2, texts[0])):
        losses = bags(generator, {texts[0]: 0.5, texts[1]: loss, texts[2]: 0.9}, [])
        ranked = Validation(losses, fluency=Fluency(1.0, model)).ranked(given)
        assert ranked[0].text == first and ranked[2].text == texts[2]
        assert {c.text: c.loss for c in ranked} == {texts[0]: 0.5, texts[1]: loss, texts[2]: 0.9}
        assert Validation(losses).ranked(given)[0].text == texts[0]
    slight = Fluency(1e-4, model)  # the dial: what little fluency is worth does not pay for this loss
    losses = bags(generator, {texts[0]: 0.5, texts[1]: 0.51, texts[2]: 0.9}, [])
    assert Validation(losses, fluency=slight).ranked(given)[0].text == texts[0]


def test_the_dial_means_the_same_on_a_model_of_other_losses(generator, model):
    given = candidates_of(generator, "dog red small", "a red square")
    for scale in (1e-3, 1.0, 1e3):

        def losses(prompts, scale=scale):
            return [scale * {0: 1.0}.get(len(p), 0.5 if tuple(p) == given[0].token_ids else 0.51) for p in prompts]

        winners = [
            Validation(losses, fluency=Fluency(w, model)).ranked(given)[0].text for w in (0.001, 0.006, 0.01, 1.0)
        ]
        if scale == 1e-3:
            first = winners
        assert winners == first and len(set(winners)) == 2


def test_where_order_does_not_matter_the_language_model_orders_the_words(generator, model):
    shuffled, other = "blue red above small dog", "blue café"
    asked: list = []
    losses = bags(generator, {shuffled: 0.4, other: 0.6}, asked)
    validation = Validation(losses, fluency=Fluency(0.05, model))
    ranked = validation.ranked(candidates_of(generator, shuffled, other))
    assert len(asked) == 3 and asked[-1] == ()
    ordered = validation.ordered(ranked, 6, generator.vocabulary)
    assert [c.text for c in ordered] == ["small red dog above blue", shuffled, other]
    assert ordered[0].token_ids == tuple(generator.vocabulary.encode(ordered[0].text)) and ordered[0].epoch == 3
    assert len(asked) == 3 + 6
    assert Validation(losses).ordered(ranked, 6, generator.vocabulary) == ranked


def test_where_order_matters_the_loss_decides(generator, model):
    (given,) = candidates_of(generator, "dog red above small blue")

    def losses(prompts):
        return [1.0 if not prompt else 0.4 if tuple(prompt) == given.token_ids else 0.4 + EQUAL for prompt in prompts]

    validation = Validation(losses, fluency=Fluency(1.0, model))
    assert validation.ordered(validation.ranked([given]), 8, generator.vocabulary) == [
        replace(given, loss=0.4, gap_closed=0.6)
    ]


def test_what_has_no_finite_loss_never_wins(generator, model):
    given = candidates_of(generator, "dog red small", "a red square")

    def losses(prompts):
        return [{0: 1.0}.get(len(p), 0.5 if tuple(p) == given[0].token_ids else torch.inf) for p in prompts]

    validation = Validation(losses, fluency=Fluency(1.0, model))
    ranked = validation.ranked(given)
    assert [c.text for c in ranked] == ["dog red small"]
    assert validation.ordered(ranked, 4, generator.vocabulary)[0].text == "dog red small"


# --- whole inversions ----------------------------------------------------------------------------------------------


def test_the_dial_at_0_changes_nothing_and_its_cost_is_planned(inverter_of, targets):
    words = ["method=random", "method.restarts=6", "method.selection.rule=loss", "method.prompt_length=6"]
    plain, silent = (inverter_of(*words, *more)(targets) for more in ([], ["method.language_model=world"]))
    inverter = inverter_of(*words, *FLUENCY)
    choice = inverter.cfg.method.selection
    results = inverter(targets)
    assert plan(replace(inverter.cfg.method, budget=(6 + 1 + choice.orders) * choice.draws))
    with pytest.raises(UserError, match=r"^method\.budget="):
        plan(replace(inverter.cfg.method, budget=(6 + 1 + choice.orders) * choice.draws - 1))
    for old, same, new in zip(plain, silent, results, strict=True):
        assert (old.prompt, old.loss, old.forward_samples) == (same.prompt, same.loss, same.forward_samples)
        assert old.forward_samples == 6 * choice.draws and len(old.candidates) == 6
        assert new.forward_samples <= (6 + 1 + choice.orders) * choice.draws
        assert inverter.generator.vocabulary.encode(new.prompt) == new.token_ids
        alone = inverter([next(t for t in targets if t.image_id == new.image_id)])[0]
        assert (alone.prompt, alone.forward_samples) == (new.prompt, new.forward_samples)
    assert any(new.forward_samples == (6 + 1 + choice.orders) * choice.draws for new in results)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["method.fluency=-1"], r"method\.fluency=-1\.0: give a number of at least 0"),
        (["method.fluency=0.1"], r"method\.language_model=None: method\.fluency needs it: give a folder or hub id"),
        (
            ["method.selection.rule=clip_text", *FLUENCY],
            r"method\.fluency=0\.05: give 0, or another method\.selection\.rule than clip_text",
        ),
        (["method=caption", *FLUENCY], r"method\.fluency=0\.05: give 0: captions stay as written"),
        (["method.selection.orders=-1"], r"method\.selection\.orders=-1: give a whole number of at least 0"),
    ],
)
def test_what_does_not_fit_is_one_line(words, line):
    with pytest.raises(UserError, match=f"^{line}"):
        load_config(words)


def test_a_language_model_that_is_not_there_is_named_before_anything_is_inverted(inverter_of):
    with pytest.raises(UserError, match=r"^method\.language_model=no/such: "):
        inverter_of("method.fluency=0.1", "method.language_model=no/such")
