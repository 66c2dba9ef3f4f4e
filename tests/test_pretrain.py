"""The recipe of the embedded model: its stages resume, and what it writes is an ordinary diffusers folder."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ph2p.models.generators import load_generator
from ph2p.models.scorer import load_scorer
from ph2p.tiny import bars, pretrain
from ph2p.tiny.recipe.image_tower import ClipImageStage, misnamed, redrawn, siblings
from ph2p.tiny.recipe.judge import HEADS, NOUNS, Judge, JudgeStage, disturbed, load_judge, noun_of, save_judge, truths
from ph2p.tiny.recipe.muon import Muon, orthogonal, split_parameters
from ph2p.tiny.recipe.scenes import load_scenes, to_unit
from ph2p.tiny.recipe.stage import STAGES, fit, whole
from ph2p.tiny.recipe.vae import VaeStage, make_vae, patch_code, principal_components
from ph2p.world import scenes as world
from ph2p.world.captions import canonical_caption
from ph2p.world.drawing import object_mask, render
from ph2p.world.scenes import COLOUR_WORDS, SIZES, Pictured, Thing

PRECISION = "32-true"  # bfloat16 is ten times slower on CPUs that lack it
PICTURES = np.stack([render(world.scene("train", index)) for index in range(8)])


class Killed(Exception):
    pass


class KilledStage(VaeStage):
    """Dies in its fourth step."""

    def on_train_batch_start(self, *_) -> None:
        if self.global_step == 3:
            raise Killed


def test_every_stage_that_can_be_named_is_run() -> None:
    assert (*pretrain.PARTS, "report") == STAGES


def test_an_interrupted_stage_ends_with_the_same_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    undisturbed = VaeStage(0, 5, PICTURES)
    start = {name: value.clone() for name, value in undisturbed.state_dict().items()}
    fit(undisturbed, tmp_path / "whole", "cpu", PRECISION)

    killed = KilledStage(0, 5, PICTURES)
    killed.load_state_dict(start)
    with pytest.raises(Killed):
        fit(killed, tmp_path / "parts", "cpu", PRECISION, save_every=2)
    resumed = VaeStage(0, 5, PICTURES)  # other initial weights: all must come from the checkpoint
    fit(resumed, tmp_path / "parts", "cpu", PRECISION, save_every=2)

    for name, value in undisturbed.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    moved = {name for name, value in undisturbed.state_dict().items() if not torch.equal(value, start[name])}
    assert "model.decoder.conv_in.weight" in moved
    assert all(name.startswith("model.decoder.") for name in moved)


def test_the_encoder_computes_the_principal_components_of_patches() -> None:
    vae = VaeStage(0, 1, PICTURES).model
    mean, components = principal_components(PICTURES)
    images = to_unit(PICTURES).permute(0, 2, 3, 1)  # (N, 64, 64, 3)
    patches = images.unfold(1, 8, 8).unfold(2, 8, 8).permute(0, 1, 2, 4, 5, 3)  # (N, 8, 8, 8, 8, 3)
    expected = torch.einsum("nijyxc,kyxc->nkij", patches - mean, components)
    with torch.no_grad():
        latents = vae.encode(images.permute(0, 3, 1, 2)).latent_dist.mode()
    assert torch.allclose(latents, expected, atol=0.02 * float(expected.std()))


def test_the_code_of_patches_is_what_the_encoder_computes() -> None:
    vae = VaeStage(0, 1, PICTURES).model
    images = to_unit(PICTURES)
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mode()
    assert torch.allclose(patch_code(vae).encode(images), latents, atol=0.02 * float(latents.std()))


def test_later_components_are_quieter_and_colours_are_of_unit_variance() -> None:
    pictures = np.stack([render(world.scene("train", index)) for index in range(200)])
    vae = make_vae()
    mean, components = principal_components(pictures)
    images = to_unit(pictures).permute(0, 2, 3, 1).unfold(1, 8, 8).unfold(2, 8, 8)  # (N, 8, 8, 3, 8, 8)
    patches = images.permute(0, 1, 2, 4, 5, 3) - mean
    deviation = torch.einsum("nijyxc,kyxc->nijk", patches, components).std(
        (0, 1, 2)
    )  # (32,) from the last to the first
    assert len(deviation) == vae.config.latent_channels
    assert torch.allclose(deviation[-4:], torch.ones(4), atol=0.02)
    assert (deviation[:-4].diff() > 0).all() and deviation[0] > 0.2


def test_the_rate_of_a_longer_run_is_the_same_until_the_shorter_one_ends() -> None:
    short, long = VaeStage(0, 1000, PICTURES), VaeStage(0, 5000, PICTURES)
    assert [short.rate(step) for step in range(800)] == [long.rate(step) for step in range(800)]
    assert short.rate(999) < 0.01 and short.rate(0) < 0.01 and long.rate(900) == 1


def test_a_part_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(Killed), whole(tmp_path / "part") as folder:
        (folder / "half").touch()
        raise Killed
    assert not (tmp_path / "part").exists()
    with whole(tmp_path / "part") as folder:
        (folder / "all").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["part", "all"]


def test_scenes_are_painted_once_and_begun_again_if_that_was_interrupted(tmp_path: Path) -> None:
    (tmp_path / "scenes-3-0.partial.npy").write_bytes(b"cut off")
    scenes, pictures = load_scenes(tmp_path, 3, seed=0)
    assert np.array_equal(pictures, [render(scene) for scene in scenes])
    assert [path.name for path in tmp_path.iterdir()] == ["scenes-3-0.npy"]


def test_things_are_redrawn_in_three_pictures_of_four_and_nothing_else_is() -> None:
    scenes = [world.scene("train", index) for index in range(40)]
    pictures = np.stack([render(scene) for scene in scenes])
    changed = redrawn(scenes, pictures, np.random.default_rng(0))
    for k, (scene, before, after) in enumerate(zip(scenes, pictures, changed, strict=True)):
        things = [thing for thing in scene.things if isinstance(thing, Pictured)]
        touched = np.any([object_mask(thing) > 0 for thing in things], axis=0) & (k % 4 != 3)
        assert (before == after)[~np.broadcast_to(touched, before.shape[:2])].all()
        assert (before != after).any() == bool(things and k % 4 != 3)


def test_a_misnamed_scene_has_one_noun_that_is_not_there_but_likely() -> None:
    likely = np.random.default_rng(0).permutation(len(NOUNS))
    for index in range(30):
        scene = world.scene("train", index)
        other = misnamed(scene, likely, np.random.default_rng(index))
        before, after = ([noun_of(thing) for thing in one.things] for one in (scene, other))
        (changed,) = [k for k, noun in enumerate(before) if noun != after[k]]
        better = [
            n
            for n in world.alike(scene.things[changed])
            if likely[NOUNS.index(n)] > likely[NOUNS.index(after[changed])]
        ]
        assert after[changed] not in before and len(set(better) - set(before)) < 5


@pytest.mark.parametrize("index", range(6))
def test_siblings_differ_in_the_noun_alone(index: int) -> None:
    scene = world.scene("train", index)
    family = siblings(scene, 8, np.random.default_rng(0))
    captions = {canonical_caption(sibling) for sibling in family}
    assert len(captions) == 8
    for sibling in family:
        assert sibling.things[1:] == scene.things[1:] and sibling.background == scene.background
        assert sibling.things[0].size == scene.things[0].size
        assert not world.held_out(getattr(sibling.things[0], "shape", None) or sibling.things[0].noun, scene.background)


def test_the_judge_is_told_what_is_there_and_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    scenes = [world.scene("train", index) for index in range(40)]
    told = truths(scenes)
    for row, scene in enumerate(scenes):
        assert told["noun"][row].sum() == len(scene.things)
        assert told["colour"][row].sum() == len({thing.colour for thing in scene.things if isinstance(thing, Thing)})
    judge = Judge().half().float()
    save_judge(judge, tmp_path)
    images = to_unit(PICTURES)
    expected = judge.eval()(images)
    said = load_judge(tmp_path)(images)
    assert {name: values.shape[1] for name, values in said.items()} == HEADS
    assert all(torch.allclose(said[name], expected[name], atol=1e-3) for name in HEADS)
    stage = JudgeStage(0, 1, scenes[:8], PICTURES)
    assert torch.isfinite(stage.loss(np.random.default_rng(0), torch.Generator().manual_seed(0)))


def test_disturbed_pictures_are_the_same_pictures_a_little_off() -> None:
    images = to_unit(PICTURES)
    other = disturbed(images, torch.Generator().manual_seed(0))
    assert other.shape == images.shape
    assert 0.01 < float((other - images).abs().mean()) < 0.3
    plain = torch.full((4, 3, 64, 64), 0.5)
    assert float((disturbed(plain, torch.Generator().manual_seed(1)).mean((2, 3)) - 0.5).abs().max()) < 0.06


def test_figures_come_with_intervals_that_hold_them() -> None:
    all_right, half = bars.share([True] * 100), bars.share([True, False] * 50)
    assert all_right.value == 1 and 0.95 < all_right.low < 1 and all_right.high <= 1 + 1e-9
    assert half.value == 0.5 and abs(half.low - 0.404) < 0.001 and abs(half.high - 0.596) < 0.001
    assert np.isnan(bars.share([]).value)


def test_a_judge_that_knows_is_right_and_one_that_does_not_is_wrong() -> None:
    scenes = [world.scene("test", index) for index in range(12)]

    class Oracle(Judge):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            told = {name: torch.from_numpy(values) for name, values in truths(scenes).items()}
            one = {name: torch.eye(HEADS[name])[told[name]] for name in ("background", "where")}
            return {"noun": told["noun"], "colour": told["colour"], **one}

    images = torch.zeros(12, 3, 64, 64)
    assert all(all(values) for values in bars.judged(Oracle(), images, scenes).values())
    figures = bars.painted_figures(Oracle(), images, scenes[1:] + scenes[:1])
    assert figures["painted_noun"].value < 0.2
    assert figures["painted_noun"].cases + figures["painted_small"].cases == 12


@pytest.mark.parametrize("attribute", ["noun", "colour", "background"])
def test_a_changed_scene_differs_in_one_word(attribute: str) -> None:
    for number in range(40):
        scene = world.scene("test", number)
        changed = bars.changed_scene(scene, attribute, number)
        if changed is None:
            assert attribute == "colour" and not isinstance(scene.things[0], Thing)
            continue
        one, other = (canonical_caption(s).replace(" an ", " a ").removeprefix("an ").split() for s in (scene, changed))
        one, other = [w for w in one if w not in ("a", "an")], [w for w in other if w not in ("a", "an")]
        assert sum(a != b for a, b in zip(one, other, strict=True)) == 1


def test_the_orthogonal_matrix_keeps_directions_and_evens_out_their_lengths() -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((20, 50), (50, 20)):
        matrix = torch.randn(rows, columns, generator=generator)
        values = torch.linalg.svdvals(orthogonal(matrix))
        assert values.min() > 0.6 and values.max() < 1.3
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        assert torch.nn.functional.cosine_similarity(orthogonal(matrix).flatten(), (u @ v).flatten(), dim=0) > 0.95


def test_muon_fits_a_net_and_goes_on_from_its_state() -> None:
    def training(net: torch.nn.Module, optimizer: Muon, steps: int) -> float:
        for _ in range(steps):
            loss = (net(inputs) - targets).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    torch.manual_seed(0)
    inputs = torch.randn(64, 8)
    targets = inputs @ torch.randn(8, 4)
    net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 4))
    optimizer = Muon(split_parameters(net), 3e-3, 0.01)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]
    first = training(net, optimizer, 20)
    again, other = copy.deepcopy(net), copy.deepcopy(optimizer.state_dict())
    resumed = Muon(split_parameters(again), 3e-3, 0.01)
    resumed.load_state_dict(other)
    assert training(net, optimizer, 200) == training(again, resumed, 200) < 0.7 * first
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


@pytest.mark.slow
def test_the_recipe_writes_a_folder_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClipImageStage, "known", 8)  # families
    monkeypatch.setattr(ClipImageStage, "again", 20)
    steps = [f"--{stage}-steps=2" for stage in ("clip", "vae", "judge", "unet", "clip-image")]
    folders = [f"--work={tmp_path / 'work'}", f"--weights={tmp_path / 'weights'}"]
    options = [*folders, "--scenes=300", f"--precision={PRECISION}", *steps]
    pretrain.pretrain(pretrain.parse([*options, "--stages", "tokenizer", "vae", "clip", "judge"]))
    pretrain.pretrain(pretrain.parse([*options, "--stages", *STAGES[:-1]]))  # goes on with what is missing
    pretrain.pretrain(pretrain.parse([*options, f"--so-far={tmp_path / 'so-far'}"]))

    start, more = tmp_path / "weights", tmp_path / "more"
    on = [f"--work={tmp_path / 'on'}", f"--weights={more}", "--scenes=300", f"--precision={PRECISION}", *steps]
    pretrain.pretrain(pretrain.parse([*on, f"--start={start}", "--seed=1", "--stages", *STAGES[:-1]]))
    for part, same in {"vae": True, "judge": False, "unet": False, "clip": False}.items():
        before, after = (load_file(next((folder / part).glob("*.safetensors"))) for folder in (start, more))
        assert all(torch.equal(before[name], after[name]) for name in before) == same, part
        if not same:  # two steps from where it was, not from nothing
            assert max(float((before[name] - after[name]).abs().max()) for name in before) < 0.02

    for weights in (start, more, tmp_path / "so-far"):
        assert not list(weights.rglob("*.partial"))
        generator = load_generator(weights, allowlist=(weights / "words.txt").read_text().split())
        assert generator.schedule.prediction_type == "v_prediction"
        assert generator.schedule.alphas_cumprod[-1] < 1e-6  # pure noise at the end
        assert generator.latent_shape == (32, 8, 8)
        words = {word for group in (COLOUR_WORDS, SIZES) for names in group.values() for word in names}
        allowed = {generator.vocabulary.decode([i]) for i in generator.vocabulary.allowed_ids.tolist()}
        assert words <= allowed and len(allowed & set(NOUNS)) > 100  # of 300 scenes
    scorer = load_scorer(tmp_path / "weights" / "clip")
    tower = load_generator(tmp_path / "weights").pipeline.text_encoder.get_input_embeddings().weight
    assert torch.equal(tower, scorer.model.text_model.get_input_embeddings().weight)
    figures = bars.measure(tmp_path / "weights", count=4)
    assert set(figures) == set(bars.BARS)
    bars.show(figures)
