"""Sets of pictures that share a prompt, negatives, and several prompts of one picture, on the small random models."""

from dataclasses import replace

import pytest
import torch

from ph2p import invert_together
from ph2p.data import TargetError, together
from ph2p.errors import UserError
from ph2p.inversion.batch import Batch
from ph2p.inversion.draws import Draws, SetKey, make_draws, restarted
from ph2p.inversion.objectives import candidate_losses
from ph2p.inversion.selection import BestRendering, Candidate, different, shortlist

WINDOW = (500, 1000)
SEARCHED = ["method=ph2p_plus", "method.draws=2", "method.judge_draws=3", "method.optimizer.max_eval=4",
            "method.budget=400", "method.search.draws=2"]  # fmt: skip


def outcome(result) -> tuple:
    """Everything that a search or a measurement could change, to the bit."""
    names = "prompt", "loss", "loss_empty", "loss_curve", "search_curve", "content"
    return *(getattr(result, name) for name in names), [(c.token_ids, c.loss) for c in result.candidates]


def similarities(result):
    """What CLIP rounds differently where other pictures and texts go through it at the same time."""
    return pytest.approx([result.clip_similarity, result.clip_text], abs=1e-6)


@pytest.mark.parametrize("method", [SEARCHED, ["method=pez", "method.budget=60"]], ids=["denoising", "clip"])
def test_one_picture_is_a_set_of_one_to_the_bit(inverter_of, targets, method):
    inverter = inverter_of(*method)
    targets = [replace(target, caption=None, words=None) for target in targets]
    alone = inverter(targets[:1])[0]
    one = inverter([together(targets[:1])])[0]
    assert outcome(one) == outcome(alone)
    for name in ("clip_similarity", "clip_text", "forward_samples", "backward_samples", "evaluation_samples"):
        assert getattr(one, name) == getattr(alone, name), name
    beside, both = inverter([targets[0], together(targets[1:])])  # a set in the batch changes nothing
    assert outcome(beside) == outcome(alone) and beside.together == []
    assert [beside.clip_similarity, beside.clip_text] == similarities(alone)
    assert both.together == [target.source for target in together(targets[1:]).shown]


def test_a_set_is_the_same_alone_in_a_batch_and_in_another_order(inverter_of, targets):
    inverter = inverter_of(*SEARCHED)
    alone = inverter([together(targets[:2], targets[2:])])[0]
    again = inverter([together(targets), together(targets[1::-1], targets[2:])])[1]
    assert outcome(again) == outcome(alone) and again.negatives == [targets[2].source]
    assert [again.clip_similarity, again.clip_text] == similarities(alone)
    assert outcome(inverter([together(targets)])[0]) != outcome(alone)
    assert 0 < alone.forward_samples + alone.backward_samples <= inverter.cfg.method.budget


def losses_of(batch: Batch, draws: Draws, generator, prompts):
    return candidate_losses(generator, batch.latents, prompts[None].expand(len(batch.ids), -1, -1), draws)


def test_a_sets_loss_is_the_mean_of_its_pictures(inverter_of, targets):
    inverter = inverter_of()
    generator, prompts = inverter.generator, inverter.generator.vocabulary.allowed_ids[:6].view(2, 3)
    batch = Batch([together(targets), together(targets[:1], targets[1:], 0.25)], generator, inverter.scorer)
    draws = batch.draws(0, "test", 6, WINDOW)
    found = losses_of(batch, draws, generator, prompts)

    def alone(row: int, target) -> torch.Tensor:
        """The losses (K,) of a picture on those of a row's draws that are of it, by itself."""
        one = Batch([target], generator, inverter.scorer)
        place = [*batch.targets[row].shown, *batch.targets[row].avoided]
        here = (draws.pictures[row] == [other.key for other in place].index(target.key)).nonzero()[:, 0]
        assert len(here) == 2
        return losses_of(
            one, Draws(draws.timesteps[row, here][None], draws.noise[row, here][None]), generator, prompts
        )[0]

    mean = torch.stack([alone(0, target) for target in targets]).mean(0)
    difference = alone(1, targets[0]) - 0.25 * torch.stack([alone(1, target) for target in targets[1:]]).mean(0)
    assert torch.allclose(found, torch.stack([mean, difference]), rtol=1e-12)
    shown = batch.draws(0, "test", 6, WINDOW, negatives=False)
    assert shown.pictures[1].unique().tolist() == [0] and shown.weights.eq(1).all()


def test_draws_are_divided_among_pictures():
    keys = ["single", SetKey.of("three", 3), SetKey.of("two", 2, 1, 0.5)]
    draws = make_draws(0, keys, ("test",), 7, WINDOW, (1, 2, 2))
    plain = make_draws(0, ["single", "three", "two"], ("test",), 7, WINDOW, (1, 2, 2))
    assert torch.equal(draws.noise, plain.noise) and torch.equal(draws.timesteps, plain.timesteps)
    assert draws.pictures[0].tolist() == [0] * 7 and draws.weights[:2].eq(1).all()
    assert sorted(draws.pictures[1].bincount().tolist()) == [2, 2, 3]
    negative = draws.pictures[2] == 2
    assert draws.weights[2][negative].sum() == pytest.approx(-3.5) and draws.weights[2][~negative].sum() == 7
    firsts = {int(make_draws(0, keys[2:], ("round", k), 1, WINDOW, (1,)).pictures[0, 0]) for k in range(20)}
    assert firsts == {0, 1}  # one draw alone is of a picture, never of a negative
    assert restarted(keys[1], 2) == "three#2" and restarted(keys[1], 2).pictures == 3


def test_features_of_a_set_give_mean_similarities(inverter_of, targets):
    inverter = inverter_of()
    batch = Batch([together(targets[:2], targets[2:], 0.5), targets[0]], inverter.generator, inverter.scorer)
    one, other, negative = (inverter.scorer.image_features(target.image[None])[0] for target in targets)
    some = inverter.scorer.text_features(["red dog", "café"])
    assert torch.allclose(some @ batch.shown_features[0], (some @ one + some @ other) / 2, atol=1e-6)
    assert torch.allclose(some @ batch.features[0], (some @ one + some @ other) / 2 - some @ negative / 2, atol=1e-6)
    assert torch.equal(batch.features[1], one) and batch.only([1]).features.shape == (1, len(one))


def test_negatives_change_what_wins(inverter_of, targets):
    inverter = inverter_of(*SEARCHED)
    without, *others = inverter([targets[0], *(together(targets[:1], [one], 1.0) for one in targets[1:])])
    assert len({without.loss_curve[0], *(other.loss_curve[0] for other in others)}) == 3
    for other in others:  # a set's loss is a difference, the result's is that of the pictures alone
        assert other.loss_curve[0] < without.loss_curve[0] and other.loss > 0 and other.loss_empty > 0
        assert other.together == [] and len(other.negatives) == 1


def test_a_loss_below_zero_still_has_finalists(inverter_of, targets):
    inverter = inverter_of("method.selection.finalists=3", "method.selection.margin=0.1", "method.selection.steps=1")
    rule = BestRendering(inverter.generator, inverter.scorer, inverter.cfg)
    ids = inverter.generator.vocabulary.allowed_ids[:3].tolist()
    some = [
        Candidate((i,), inverter.generator.vocabulary.decode([i]), 0, loss, total=loss)
        for i, loss in zip(ids, (-1, -0.95, -0.5), strict=True)
    ]
    features = inverter.scorer.image_features(targets[0].image[None])[0]
    ranked = rule(features, some)
    assert {c.loss for c in ranked if c.clip_similarity is not None} == {-1, -0.95}


@pytest.mark.parametrize(
    ("pictures", "negatives", "weight", "said"),
    [
        ([], [0], 0.5, r"^pictures: give at least one$"),
        ([0, 1], [1], 0.5, r"is a negative and one of the pictures"),
        ([0], [1], 0.0, r"^weight=0\.0: give a number above 0, at most 1$"),
        ([0], [1], float("nan"), r"^weight=nan"),
    ],
)
def test_what_is_no_set_is_one_line(targets, pictures, negatives, weight, said):
    with pytest.raises(UserError, match=said) as caught:
        together([targets[k] for k in pictures], [targets[k] for k in negatives], weight)
    assert "\n" not in str(caught.value)


def test_more_pictures_than_draws_are_refused(inverter_of, targets):
    for words, key in (
        (["method.selection.draws=2"], "method.selection.draws=2"),
        (["evaluation.draws=2"], "evaluation"),
    ):
        with pytest.raises(UserError, match=f"^{key}.*3 pictures"):
            inverter_of(*SEARCHED, *words)([together(targets)])
    assert len(inverter_of(*SEARCHED, "method.selection.draws=2")(targets[:1])) == 1


def test_one_prompt_from_python(inverter_of, targets):
    inverter = inverter_of(*SEARCHED)
    images = [target.image for target in targets]
    result = invert_together(images[:2], images[2:], inverter=inverter)
    plain = [replace(target, image=target.image) for target in targets]
    assert result.prompt == inverter([together(plain[:2], plain[2:])])[0].prompt
    assert result.image_id == "image-0 and 1 more" and result.together and result.negatives
    with pytest.raises(UserError, match=r"^str: give a list"):
        invert_together("a.png", inverter=inverter)
    with pytest.raises(UserError, match=r"^images: give at least one"):
        invert_together([], inverter=inverter)
    with pytest.raises(UserError, match=r"^weight=2"):
        invert_together(images[:1], images[1:], 2, inverter=inverter)
    with pytest.raises(TargetError, match="does not exist"):
        invert_together(["/no/such.png"], inverter=inverter)


# --- several prompts of one picture ---------------------------------------------------------------------------------


def candidates(*texts: str) -> list[Candidate]:
    return [Candidate((k,), text, 0, float(k)) for k, text in enumerate(texts)]


def test_prompts_that_differ_share_at_most_half_of_their_words():
    some = candidates("a red dog", "red dog a", "a blue cat", "red Dog cat", "cat", "green")
    assert [c.text for c in different(some, 9)] == ["a red dog", "a blue cat", "green"]
    assert [c.text for c in different(some, 2)] == ["a red dog", "a blue cat"]
    assert different(some, 1) == some[:1] and different([], 3) == []


def test_a_shortlist_keeps_different_prompts(generator):
    vocabulary = generator.vocabulary
    ids = vocabulary.allowed_ids[:8].tolist()
    near = [ids[:4], [*ids[:3], ids[4]], [*ids[:3], ids[5]], [*ids[:3], ids[6]], ids[4:], [ids[0]]]
    rows = torch.tensor([row + [-1] * (4 - len(row)) for row in near])
    losses = torch.arange(6.0)
    one = shortlist(vocabulary, rows, losses, [0] * 6, 3)
    two = shortlist(vocabulary, rows, losses, [0] * 6, 3, None, 2)
    assert [c.token_ids for c in one] == [tuple(near[k]) for k in (0, 1, 5)]
    assert [c.token_ids for c in two] == [tuple(near[k]) for k in (0, 4, 5)]


def test_other_prompts_are_reported_and_cost_nothing(inverter_of, targets):
    one, several = (inverter_of(*SEARCHED, f"method.prompts={k}")(targets[:1])[0] for k in (1, 3))
    assert one.alternatives == [] and len(several.alternatives) <= 2
    assert (one.forward_samples, one.backward_samples) == (several.forward_samples, several.backward_samples)
    known = {c.text: c for c in several.candidates}
    for row in several.alternatives:
        assert row["loss"] == known[row["prompt"]].loss and row["gap_closed"] < 1 and row["prompt"] != several.prompt


def test_more_prompts_than_a_shortlist_are_refused(inverter_of):
    with pytest.raises(UserError, match=r"^method\.prompts=9: give at most method\.selection\.shortlist=6"):
        inverter_of("method.prompts=9")
    with pytest.raises(UserError, match=r"^method\.prompts=0"):
        inverter_of("method.prompts=0")
