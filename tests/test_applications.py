"""The applications: what they say of the embedded model and its world, and what they write."""

import json
import sys
from dataclasses import asdict, fields, replace
from html import escape
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml

from ph2p import cli
from ph2p.applications.attention import NOWHERE, AttentionMaps, attention_maps, word_maps
from ph2p.applications.distillation import Step, distil, shortest
from ph2p.applications.evolution import clip_fitness, crossover, denoising_fitness, evolve, mutate
from ph2p.applications.recording import recording
from ph2p.applications.removal import Removal, Renderings, remove
from ph2p.applications.request import APPLICATIONS
from ph2p.applications.settings import (
    SETTINGS,
    AttentionSettings,
    DistillationSettings,
    EvolutionSettings,
    RemovalSettings,
    load_settings,
    yaml_file,
)
from ph2p.applications.style import find_style
from ph2p.config.compose import config_dir, load_config
from ph2p.errors import UserError
from ph2p.evaluation.texts import text_losses
from ph2p.inversion.draws import make_draws
from ph2p.inverter import Inverter
from ph2p.models.generators import load_generator
from ph2p.models.painting import guidance_options
from ph2p.world.captions import attribute_words, canonical_caption
from ph2p.world.scenes import Thing

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from applications import (
    as_target,
    attention_scores,
    background_removals,
    distillation_of,
    noun_of,
    sets_of_scenes,
    some_scenes,
)
from pipelines import save_family


@pytest.fixture(scope="module")
def embedded():
    from ph2p import load_inverter

    return load_inverter()


@pytest.fixture
def random_models(monkeypatch, inverter_of, targets, tmp_path):
    """The command with small random models; returns a picture's path."""
    from PIL import Image

    monkeypatch.setattr("ph2p.api.load_inverter", lambda words: inverter_of(*words))
    file = tmp_path / "a <b>.png"
    pixels = (targets[0].image.permute(1, 2, 0) * 255).byte().numpy()
    Image.fromarray(pixels).save(file)
    return file


# --- settings and the command -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", APPLICATIONS)
def test_every_setting_stands_in_its_yaml_file_with_its_default(name):
    assert {path.stem for path in (config_dir() / "application").glob("*.yaml")} == set(APPLICATIONS) == set(SETTINGS)
    given = yaml.safe_load(yaml_file(name).read_text())
    assert list(given) == [one.name for one in fields(SETTINGS[name])]
    assert given == asdict(SETTINGS[name]()) == asdict(load_settings(name))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("application.drws=3", "application.draws"),
        ("application.draws=0", "application.draws=0: give a whole number"),
        ("application.draws=many", "application.draws=many"),
        ("application.timesteps=[5,2]", "application.timesteps=[5, 2]"),
        ("application.threshold=1", "application.threshold"),
        ("+application.draws=2", "no such key"),
    ],
)
def test_a_wrong_setting_is_one_line(word, said, capsys):
    assert cli.main(["apply", "attention", "a.png", "a star", "--set", word]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and said in err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "attention"),
        (["attention", "a.png"], "IMAGE PROMPT"),
        (["attention", "a.png", "a star", "--output", "a.png"], ".html"),
        (["style", "/no/such.png"], "/no/such.png: no such file"),
        (["style", __file__, "--negative", "/no/such.png"], "/no/such.png: no such file"),
        (["style", __file__, "--set", "application.weight=0.2"], "has no effect without --negative"),
        (["style", __file__, "--set", "application.weight=1.5"], "application.weight=1.5: give a number above 0"),
        (["style", *[__file__] * 9], "method.judge_draws=8: a prompt is to be found for 9 pictures"),
        (["style", *[__file__] * 9, "--set", "method=greedy"], "method.search.race"),
        (["painting", "a.png"], "painting"),
    ],
)
def test_what_is_missing_is_one_line(argv, said, capsys):
    assert cli.main(["apply", *argv]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err


def written(folder: Path, name: str) -> tuple[str, dict]:
    """The page, which fetches nothing and holds no tag of ours, and the record beside it."""
    page = (folder / f"{name}.html").read_text()
    assert "<script" not in page and "http" not in page.replace("http-equiv", "") and "default-src 'none'" in page
    return page, json.loads((folder / f"{name}.json").read_text())


# --- attention ----------------------------------------------------------------------------------------------------


def test_recording_changes_nothing_and_ends(generator):
    conditioning = generator.condition(generator.vocabulary.allowed_ids[None, :3])
    noisy, timesteps = torch.randn(1, *generator.latent_shape), torch.tensor([500])
    with torch.no_grad():
        before = generator.predict(noisy, timesteps, conditioning)
        with recording(generator) as recorder:
            during = generator.predict(noisy, timesteps, conditioning)
        layers = recorder.layers
        after = generator.predict(noisy, timesteps, conditioning)
    assert torch.equal(before, during) and torch.equal(before, after)
    assert layers == recorder.layers > 1
    maps = recorder.mean()
    assert maps.shape == (1, generator.context_length, *generator.image_size)
    assert maps.min() >= 0
    # Each place divides its attention among the text: bicubic interpolation and the cut at 0 move the sum a little.
    assert torch.allclose(maps.sum(1), torch.ones(1, *generator.image_size), atol=0.05)


@pytest.mark.parametrize("family", ["sdxl", "pixart"])
def test_families_with_cross_attention_can_be_recorded(family, targets, tmp_path):
    generator = load_generator(save_family(tmp_path / family, family))
    found = attention_maps(generator, targets[0], "red dog", AttentionSettings(draws=2))
    assert found.words == ("red", "dog") and found.maps.shape == (2, *generator.image_size)
    assert 0 < found.maps.sum(0).max() < 1  # the rest looks at the marks around the prompt


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_family_with_joint_attention_is_refused_in_one_line(family, targets, tmp_path):
    size = {"image_size": 16} if family == "flux" else {}
    generator = load_generator(save_family(tmp_path / family, family), **size)
    with pytest.raises(UserError, match=r"^\w+: has no cross-attention") as raised:
        attention_maps(generator, targets[0], "red dog", AttentionSettings(draws=1))
    assert "\n" not in str(raised.value)


def test_masks_and_labels_by_hand():
    maps = AttentionMaps(("a", "b"), torch.tensor([[[0.2, 0.1, 0.0]], [[0.1, 0.4, 0.1]]]))
    assert maps.masks(0.4).tolist() == [[[True, True, False]], [[False, True, False]]]
    assert maps.labels(0.4).tolist() == [[0, 1, NOWHERE]]


def test_a_word_of_several_tokens_is_their_mean(generator):
    vocabulary = generator.vocabulary
    ids = vocabulary.encode("red zebra red")
    words = tuple(vocabulary.decode([token]) for token in ids)
    assert len(words) > 3  # zebra is more than one
    maps = AttentionMaps(words, torch.rand(len(words), 2, 2))
    found = word_maps(maps, vocabulary, ["red", "zebra"])
    assert torch.allclose(found.maps[0], (maps.maps[0] + maps.maps[-1]) / 2)
    assert torch.allclose(found.maps[1], maps.maps[1:-1].mean(0))
    with pytest.raises(UserError, match="green is not in the prompt"):
        word_maps(maps, vocabulary, ["green"])


def test_a_noun_finds_its_object(embedded):
    scores = attention_scores(embedded, some_scenes("val", 8), AttentionSettings(draws=4))
    means = {name: sum(values) / len(values) for name, values in scores.items()}
    blind = max(value for name, value in means.items() if "disc" in name or "whole" in name)
    assert means["the noun's mask"] > blind + 0.1
    assert means["told apart (labels)"] > blind + 0.1


def test_maps_depend_on_picture_prompt_and_seed_alone(embedded):
    one, other = (as_target(scene) for scene in some_scenes("val", 2))
    settings = AttentionSettings(draws=2)
    first, again, elsewhere, seeded = (
        attention_maps(embedded.generator, target, "a red star", settings, seed).maps
        for target, seed in ((one, 0), (one, 0), (other, 0), (one, 1))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, elsewhere) and not torch.equal(first, seeded)


def test_the_command_writes_an_escaped_page(random_models, tmp_path, capsys):
    argv = ["apply", "attention", str(random_models), "red dog", "--output", str(tmp_path / "sub" / "maps.html")]
    assert cli.main([*argv, "--set", "application.words=[dog]", "--set", "application.draws=2"]) == 0
    page, record = written(tmp_path / "sub", "maps")
    assert "a &lt;b&gt;.png" in page and "<b>.png" not in page
    assert page.count("data:image/png") == 4  # the picture, its segmentation, two tokens
    assert [word["word"] for word in record["words"]] == ["red", "dog"]
    assert record["settings"]["draws"] == 2
    assert "maps.html" in capsys.readouterr().out


# --- distillation -------------------------------------------------------------------------------------------------


def test_the_word_that_goes_is_the_cheapest(generator, targets):
    settings = DistillationSettings(draws=3, measure=5)
    steps = distil(generator, targets[0], "red dog above café", settings, seed=4)
    assert [len(step.words) for step in steps] == [4, 3, 2, 1, 0]
    latent = generator.encode_images(targets[0].image[None])

    def losses(purpose: str, texts: list[str], count: int) -> list[float]:
        key, shape = [targets[0].key], latent.shape[1:]
        draws = make_draws(4, key, ("distillation", purpose), count, (500, 1000), shape)
        return [text_losses(generator, latent, [text], draws)[0] for text in texts]

    for before, after in pairwise(steps):
        shorter = [" ".join(before.words[:k] + before.words[k + 1 :]) for k in range(len(before.words))]
        values = losses("choose", shorter, 3)
        assert shorter[values.index(min(values))] == after.text
        assert sorted([*after.words, after.removed]) == sorted(before.words)
    assert [step.loss for step in steps] == pytest.approx(losses("measure", [step.text for step in steps], 5))


def test_the_shortest_keeps_what_is_asked_for():
    losses = {"a b c": 1.0, "a b": 1.05, "a": 1.5, "": 2.0}
    steps = [Step(tuple(text.split()), "", value, 0) for text, value in losses.items()]
    assert [shortest(steps, keep).text for keep in (1, 0.95, 0.9, 0.5, 0.4)] == ["a b c", "a b", "a b", "a", "a"]
    worse = [Step(("a",), "", 3.0, 0), Step((), "a", 2.0, 0)]
    assert shortest(worse, 0.9).text == ""


def test_wrong_words_go_before_true_ones(embedded):
    # Shapes look alike in every split; of a thing in the strange hand a true word may be worth less than a wrong one.
    for one in [one for one in some_scenes("val", 4, objects=1) if isinstance(one.things[0], Thing)][:2]:
        steps, wrong = distillation_of(embedded, one, DistillationSettings(draws=4, measure=8))
        assert {step.removed for step in steps[1 : len(steps) // 2]} >= wrong
        assert min(step.loss for step in steps) < steps[0].loss - 0.1 * (steps[-1].loss - steps[0].loss)


def test_timesteps_that_a_model_has_not_are_refused(generator, targets):
    window, said = [0, 1001], r"^application\.timesteps=\[0, 1001\]: this model has 1000 timesteps$"
    with pytest.raises(UserError, match=said):
        attention_maps(generator, targets[0], "dog", AttentionSettings(timesteps=window))
    with pytest.raises(UserError, match=said):
        distil(generator, targets[0], "dog", DistillationSettings(timesteps=window))
    with pytest.raises(UserError, match=said):
        denoising_fitness(generator, targets[:1], EvolutionSettings(timesteps=window))


def test_the_page_of_a_distillation(random_models, tmp_path, capsys):
    argv = ["apply", "distillation", str(random_models), "red <b>dog", "--output", str(tmp_path / "short.html")]
    assert cli.main([*argv, "--set", "application.draws=1", "--set", "application.measure=2"]) == 0
    page, record = written(tmp_path, "short")
    assert "red &lt;b&gt;dog" in page and "<b>dog" not in page and page.count('class="dot"') == 3
    assert record["steps"][0]["removed"] == "" and len(record["steps"]) == 3
    assert "loss" in capsys.readouterr().out


# --- concept removal ----------------------------------------------------------------------------------------------


def test_rates_and_their_change_by_hand():
    empty = torch.zeros(4, 3, 1, 1)
    before, after = Renderings(empty, ("red", "red", "red", "blue")), Renderings(empty, ("blue", "red", "blue", "red"))
    rate, low, high = before.rate("red")
    assert rate == 0.75 and 0.3 < low < 0.75 < high < 1
    never, low, high = before.rate("green")
    assert never == 0 and low == pytest.approx(0) and high > 0.3  # four pictures do not prove that it is never there
    change, low, high = Removal("red", before, after).change()
    assert change == -0.25 and low < change < high


def test_a_negative_prompt_keeps_a_background_away(embedded):
    few = Inverter(embedded.generator, embedded.scorer, load_config(["generator.steps=8"]))
    (found,) = background_removals(few, 12, 1)
    assert found.after.rate(found.concept)[0] < found.before.rate(found.concept)[0] / 2


def test_removal_compares_the_same_seeds_and_needs_alternatives(inverter_of):
    few = inverter_of()
    models = few.generator, few.scorer, few.cfg.generator, ("red dog", "café")
    found = remove(*models, RemovalSettings(2, alternatives=["dog"]))
    again = remove(*models, RemovalSettings(2, alternatives=["dog"]))
    assert found.concept == "café" and set(found.before.seen) <= {"café", "dog"}
    assert torch.equal(found.before.pictures, again.before.pictures)
    assert not torch.equal(found.before.pictures, found.after.pictures)
    for wrong in ([], ["café", "dog"]):
        with pytest.raises(UserError, match=r"^application\.alternatives"):
            remove(*models, RemovalSettings(2, alternatives=wrong))


def test_a_negative_prompt_that_cannot_act_is_refused(generator, tmp_path):
    with pytest.raises(UserError, match=r"^generator\.guidance_scale=1\.0"):
        generator.sample(["dog"], [0], 2, 1.0, negative_prompt="red")
    flux = load_generator(save_family(tmp_path / "flux", "flux"), image_size=16)
    with pytest.raises(UserError, match=r"^FluxPipeline: .*no negative prompt"):
        flux.sample(["dog"], [0], 2, negative_prompt="red")


def test_a_negative_prompt_is_the_pipelines_own(generator):
    ours = generator.sample(["red dog"], [3], 2, 3.0, negative_prompt="blue")
    latents = generator.pipeline(
        "red dog",
        negative_prompt="blue",
        generator=torch.Generator().manual_seed(3),
        num_inference_steps=2,
        guidance_scale=3.0,
        height=16,
        width=16,
        output_type="latent",
    ).images
    assert torch.equal(ours, generator.decode_latents(latents))
    assert not torch.equal(ours, generator.sample(["red dog"], [3], 2, 3.0))


def test_the_page_of_a_removal(random_models, tmp_path, capsys):
    argv = ["apply", "removal", "red dog", "<i>blue", "--output", str(tmp_path / "without.html")]
    words = ["application.renders=2", "application.alternatives=[dog,'<b>']"]
    assert cli.main([*argv, *(part for word in words for part in ("--set", word))]) == 0
    page, record = written(tmp_path, "without")
    assert "&lt;i&gt;blue" in page and "<i>blue" not in page and page.count("data:image/png") == 4
    assert set(record["rates"]) == set(record["seen"]) == {"without", "with"}
    assert "change" in capsys.readouterr().out


# --- evolution ----------------------------------------------------------------------------------------------------


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_child_has_its_tokens_from_both_parents():
    one, other = (1, 2, 3, 4, 5, 6), (7, 8, 9)
    children = {crossover(one, other, chance(seed)) for seed in range(50)}
    for child in children:
        assert all(token in (one[k], other[k // 2]) for k, token in enumerate(child))
    assert len(children) > 20
    assert crossover(one, other, chance(3)) == crossover(one, other, chance(3))


def test_a_mutation_is_a_near_allowed_token(generator):
    vocabulary = generator.vocabulary
    ids = tuple(vocabulary.allowed_ids[:5].tolist())
    near = vocabulary.neighbours(torch.tensor(ids), 3).tolist()
    for token, row in zip(ids, near, strict=True):
        others = [i for i in vocabulary.allowed_ids.tolist() if i != token]
        far = (vocabulary.embeddings[others] - vocabulary.embeddings[token]).norm(dim=1)
        assert row == [others[k] for k in far.argsort()[:3].tolist()]
    assert mutate(vocabulary, ids, 0.0, 3, chance()) == ids
    assert all(token in row for token, row in zip(mutate(vocabulary, ids, 1.0, 3, chance()), near, strict=True))


def test_a_family_gets_fitter_and_is_the_same_again(generator):
    vocabulary = generator.vocabulary
    ids = vocabulary.allowed_ids[:6].tolist()
    prompts = [vocabulary.decode(ids[:3] * 2), vocabulary.decode(ids[3:] * 2)]

    def fitness(some):  # each of two pictures wants other tokens in other places; no founder has both
        wanted = [(0, ids[0]), (1, ids[1])], [(4, ids[4]), (5, ids[5])]
        return torch.tensor([[sum(row[k] == token for k, token in want) / 2 for want in wanted] for row in some])

    settings = EvolutionSettings(generations=8, population=12, survivors=3)
    family, again = (evolve(vocabulary, prompts, fitness, settings, seed=5) for _ in range(2))
    assert family == again != evolve(vocabulary, prompts, fitness, settings, seed=6)
    best = [family.members[living[0]].fitness for living in family.generations]
    assert best == sorted(best) and (best[0], best[-1]) == (0, 1)
    assert all(len(living) <= 12 for living in family.generations)
    assert len({one.token_ids for one in family.members}) == len(family.members) > 30
    assert all(vocabulary.encode(one.text) == list(one.token_ids) for one in family.members)
    line = family.ancestors(family.best.number)
    assert {0, 1} <= line < set(range(len(family.members)))
    for one in family.members:
        assert all(family.members[parent].born < one.born for parent in one.parents)
    with pytest.raises(UserError, match="two or more different"):
        evolve(vocabulary, prompts[:1] * 2, fitness, settings)


def test_a_child_suits_both_pictures_better_than_its_parents(embedded):
    scenes = some_scenes("val", 2, objects=1)
    settings = EvolutionSettings(generations=3, population=8, survivors=3, draws=4)
    fitness = denoising_fitness(embedded.generator, [as_target(scene) for scene in scenes], settings)
    family = evolve(embedded.generator.vocabulary, list(map(canonical_caption, scenes)), fitness, settings)
    founders = family.members[:2]
    assert [one.suits.index(max(one.suits)) for one in founders] == [0, 1]  # each suits its own picture
    assert family.best.fitness > max(one.fitness for one in founders) + 0.02


def test_clip_prefers_the_picture_that_a_prompt_renders(inverter_of, targets):
    few = inverter_of("generator.steps=2")
    texts = ["red dog", "café"]
    rendered = few.generator.sample(texts, [1007, 1007], 2, **guidance_options(few.cfg.generator))
    pictures = [replace(targets[k], image=picture) for k, picture in enumerate(rendered)]
    fitness = clip_fitness(few.generator, few.scorer, few.cfg.generator, pictures, seed=7)
    suits = fitness([tuple(few.generator.vocabulary.encode(text)) for text in texts])
    assert suits.shape == (2, 2) and torch.allclose(suits.diag(), torch.ones(2), atol=1e-4)
    assert suits[0, 1] == pytest.approx(float(suits[1, 0]), abs=1e-4)


@pytest.mark.parametrize("by", ["denoising", "clip"])
def test_the_page_of_an_evolution(by, random_models, tmp_path, capsys):
    image = str(random_models)
    argv = ["apply", "evolution", image, "red dog", image, "blue <b>", "--output", str(tmp_path / "family.html")]
    words = [f"application.by={by}", "application.generations=2", "application.population=4", "application.survivors=2"]
    assert cli.main([*argv, *(part for word in words for part in ("--set", word))]) == 0
    page, record = written(tmp_path, "family")
    assert "blue &lt;b&gt;" in page and "blue <b>" not in page and page.count("data:image/png") == 5
    assert page.count("<circle") == len(record["members"]) >= 4
    assert escape(record["best"]) in page and len(record["generations"]) == 3
    assert "generation 2" in capsys.readouterr().out


# --- style ----------------------------------------------------------------------------------------------------------


def test_the_page_of_a_style(random_models, targets, tmp_path, capsys):
    from PIL import Image

    other = tmp_path / "other.png"
    Image.fromarray((targets[1].image.permute(1, 2, 0) * 255).byte().numpy()).save(other)
    argv = ["apply", "style", str(random_models), str(other), "--output", str(tmp_path / "both.html")]
    words = ["method.prompts=2", "evaluation.renders=2", "evaluation.draws=4"]
    assert cli.main([*argv, *(part for word in words for part in ("--set", word))]) == 0
    page, record = written(tmp_path, "both")
    assert "a &lt;b&gt;.png" in page and "<b>" not in page and page.count("data:image/png") == 4
    assert [row["image"] for row in record["pictures"]] == [str(random_models), str(other)]
    assert record["negatives"] == [] and len(record["alternatives"]) <= 1 and escape(record["prompt"]) in page
    assert "other.png" in capsys.readouterr().out

    argv = ["apply", "style", str(random_models), "--negative", str(other), "--output", str(tmp_path / "one.html")]
    assert cli.main([*argv, *(part for word in words for part in ("--set", word))]) == 0
    page, record = written(tmp_path, "one")
    assert "The negatives" in page and page.count("data:image/png") == 4
    assert [row["image"] for row in record["negatives"]] == [str(other)] and record["settings"] == {"weight": 0.5}
    assert record["negatives"][0]["loss_empty"] != record["pictures"][0]["loss_empty"]


def test_a_picture_that_is_a_negative_too_is_refused(random_models, tmp_path, capsys):
    argv = ["apply", "style", str(random_models), "--negative", str(random_models)]
    assert cli.main([*argv, "--output", str(tmp_path / "none.html")]) == 2
    err = capsys.readouterr().err
    assert "is a negative and one of the pictures" in err and err.count("\n") == 1
    assert not (tmp_path / "none.html").exists()


@pytest.mark.slow
def test_one_prompt_says_what_pictures_share(embedded):
    scenes, shared = sets_of_scenes("val", 2)[1]  # the same background
    assert len(scenes) == 3 and len({one.background for one in scenes}) == 1 < len(set(map(noun_of, scenes)))
    fast = Inverter(embedded.generator, embedded.scorer, load_config(["method=fast", "evaluation.renders=1"]))
    models = fast, fast.generator, fast.scorer, fast.cfg
    found = find_style(*models, [as_target(one) for one in scenes])
    assert found.result.together == ["world"] * 3 and len(found.pictures) == 3
    assert found.result.gap_closed > 0.05
    assert shared & set(found.result.prompt.split())


def test_scenes_of_a_set_share_one_thing():
    for number, (scenes, shared) in enumerate(sets_of_scenes("val", 8)):
        assert all(any(shared == words for words in attribute_words(one)) for one in scenes)
        parts = [{one.background for one in scenes}, set(map(noun_of, scenes))]
        assert [len(part) for part in parts] == ([1, 3] if number % 2 else [3, 1])
