"""Words that must stand in the prompt and words that may not: in every method, and what cannot be so is one line."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from runs import light_denoiser

from ph2p import load_config
from ph2p.config.keywords import as_overrides
from ph2p.config.method import SearchConfig
from ph2p.errors import UserError
from ph2p.inversion.moves import MOVES, Position
from ph2p.inversion.price import Price
from ph2p.inversion.prompts import present, stacked
from ph2p.inversion.search import Search

SMALL = ["method.draws=2", "method.budget=400"]
METHODS = {
    "ph2p": ["method=ph2p", *SMALL, "method.judge_draws=2", "method.optimizer.max_eval=6"],
    "ph2p_plus": ["method=ph2p_plus", "method.draws=2", "method.budget=900", "method.optimizer.max_eval=6"],
    "ph2p_released": ["method=ph2p_released", "method.budget=200"],
    "pez": ["method=pez", "method.budget=200"],
    "soft": ["method=soft", "method.steps=40"],
    "random": ["method=random"],
    "greedy": ["method=greedy"],
    "retrieval": ["method=retrieval", "method.restarts=2"],
}


@pytest.fixture(autouse=True)
def quick(generator, monkeypatch):
    monkeypatch.setattr(generator.pipeline.unet, "forward", light_denoiser)


def words(result) -> list[str]:
    return result.prompt.split()


@pytest.mark.parametrize("method", ["ph2p", "ph2p_plus"])
def test_a_batch_holds_what_is_required_and_not_what_is_forbidden(inverter_of, targets, method):
    free = inverter_of(*METHODS[method])
    found = free(targets)
    vocabulary = free.generator.vocabulary
    forbidden = sorted({word for result in found for word in words(result)})
    known = [vocabulary.decode([i]) for i in vocabulary.allowed_ids.tolist()]
    required = [word for word in known if word not in forbidden][:2]
    assert forbidden and len(required) == 2  # or the rest would prove nothing
    chosen = as_overrides(require=[word.title() for word in required], forbid=[word.upper() for word in forbidden])
    bound = inverter_of(*METHODS[method], *chosen)
    together = bound(targets)
    for result in together:
        for candidate in result.candidates:  # each of them could have won
            assert set(required) <= set(candidate.text.split()) and not set(forbidden) & set(candidate.text.split())
    (alone,) = bound(targets[1:2])
    assert (alone.prompt, alone.loss) == (together[1].prompt, pytest.approx(together[1].loss))
    (again,) = free(targets[:1])
    assert again.prompt == found[0].prompt  # the model is as it was


@pytest.mark.parametrize("method", METHODS)
def test_every_method_holds_them(inverter_of, targets, method):
    inverter = inverter_of(*METHODS[method], "method.require=[circle]", "method.forbid=[dog,red]")
    (result,) = inverter(targets[1:2])
    assert "circle" in words(result) and not {"dog", "red"} & set(words(result))


def test_a_projection_is_the_nearest_of_the_prompts_that_hold_the_words(generator):
    """Against all prompts of three tokens of a small vocabulary, by both distances."""
    some = ["red", "dog", "circle", "small", "blue"]
    others = [generator.vocabulary.decode([i]) for i in generator.vocabulary.allowed_ids.tolist()]
    chosen = generator.vocabulary.choosing(["dog", "red"], [word for word in others if word not in some])
    ids = [i for (i,) in map(chosen.encode, some)]
    assert sorted(chosen.allowed_ids.tolist()) == sorted(ids) and chosen.allowed.sum() == 5
    prompts = torch.randn(20, 3, chosen.embeddings.shape[1], generator=torch.Generator().manual_seed(3))
    prompts = prompts * chosen.deviation() * 3
    for distance in ("euclid", "cosine"):
        table = chosen.embeddings[ids]
        unit = table / table.norm(dim=1, keepdim=True)
        far = -(prompts @ unit.T) if distance == "cosine" else (prompts[:, :, None] - table).square().sum(-1)
        allowed = [text for text in product(range(5), repeat=3) if {0, 1} <= set(text)]
        costs = torch.stack([far[:, range(3), list(text)].sum(1) for text in allowed], 1)
        expected = [[ids[k] for k in allowed[best]] for best in costs.argmin(1).tolist()]
        assert chosen.projecting(distance).nearest(prompts).tolist() == expected
    assert len(set(map(tuple, expected))) > 5
    alone = torch.stack([chosen.nearest(prompt) for prompt in prompts])
    assert torch.equal(chosen.nearest(prompts), alone)


@pytest.mark.parametrize("name", MOVES)
def test_a_move_takes_no_required_word_away(name):
    random = torch.Generator().manual_seed(0)
    for prompt in ([10, 11, 12], [11, 11, 12], [11, 12], [11]):
        scores = torch.rand(len(prompt), 20, generator=random)
        near = torch.randint(10, 30, (len(prompt), 4), generator=random)
        known, required = torch.tensor([28, 29]), frozenset({11, 12})
        at = Position(torch.tensor(prompt), scores, torch.arange(10, 30), [known], near, (1, 5), random, required)
        held = required & set(prompt)
        found = [after.tolist() for _ in range(20) for after in MOVES[name](at, 8)]
        assert all(held <= set(after) for after in found)
        if len(prompt) == 3:  # there is something to do all the same
            assert any(after != prompt for after in found) or name in ("double", "reword")


def test_a_search_keeps_to_the_words_from_its_first_round_to_its_last(generator, targets):
    latents = generator.encode_images(torch.stack([target.image for target in targets]))
    method = load_config(["method=ph2p_plus"]).method
    small = SearchConfig(starts=2, draws=2, race=[[12, 1], [6, 1], [3, 2]], min_length=1, max_length=6)
    method = replace(method, search=small, prompt_length=3)
    vocabulary = generator.vocabulary.choosing(["dog"], ["circle", "blue"])
    start = vocabulary.holding(starts := stacked([[*vocabulary.random(3, torch.Generator().manual_seed(5))]]),
                               vocabulary.embed(starts))  # fmt: skip
    # Words are so dear that it would delete all others.
    found, *_ = Search(generator, latents, ["a", "b", "c"], method, 0, vocabulary, Price(50.0))(
        start.repeat(3, 1, 1), 6
    )
    texts = [set(vocabulary.decode(present(prompt)).split()) for row in found for prompt in row]
    assert all("dog" in text and not {"circle", "blue"} & text for text in texts)
    assert min(map(len, texts)) < 3


WRONG = [
    (
        ["method.require=[red,dog]", "method.forbid=[Red]"],
        "method.require=['red', 'dog']: red is forbidden by method.forbid",
    ),
    (["method.require=['red dog']"], "method.require=['red dog']: give single words"),
    (["method.forbid=['']"], "method.forbid=['']: give single words"),
    (["method.require=[a,b,c]", "method.prompt_length=2"], "method.prompt_length=2: give at least 3 words"),
    (["method.init=a Dog", "method.forbid=[dog]"], "method.init=a Dog: holds dog, which method.forbid leaves out"),
    (["method.init=a dog", "method.require=[a,b,c]"], "method.init=a dog: give at least 3 words"),
]


@pytest.mark.parametrize(("keys", "says"), WRONG)
def test_what_cannot_be_together_is_one_line(keys, says):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        load_config(keys)
    assert says in str(caught.value)


def test_words_that_the_model_lacks_are_one_line(generator):
    vocabulary = generator.vocabulary
    pieces = next(word for word in ("dogcircle", "smallsmall", "reddog") if len(vocabulary.encode(word)) > 1)
    with pytest.raises(UserError, match=rf"^method\.require: '{pieces}' is \d tokens of this model; only words of one"):
        vocabulary.choosing([pieces], [])
    with pytest.raises(UserError, match=r"^method\.require: 'dog' is left out by the rules for words; give gen"):
        vocabulary.choosing([], ["dog"]).choosing(["dog"], [])
    everything = [vocabulary.decode([i]) for i in vocabulary.allowed_ids.tolist()]
    with pytest.raises(UserError, match=r"^method\.forbid: no token is left"):
        vocabulary.choosing([], everything)
    assert torch.equal(vocabulary.choosing([], ["nosuchword"]).allowed_ids, vocabulary.allowed_ids)
