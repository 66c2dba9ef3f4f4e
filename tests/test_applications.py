"""The applications: what they say of the embedded model and its world, and what they write."""

import json
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch
import yaml

from ph2p import cli
from ph2p.applications.attention import NOWHERE, AttentionMaps, attention_maps, word_maps
from ph2p.applications.recording import recording
from ph2p.applications.request import APPLICATIONS
from ph2p.applications.settings import SETTINGS, AttentionSettings, load_settings, yaml_file
from ph2p.config.compose import config_dir
from ph2p.errors import UserError
from ph2p.models.generators import load_generator

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from applications import as_target, attention_scores, some_scenes


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
    from pipelines import save_family

    generator = load_generator(save_family(tmp_path / family, family))
    found = attention_maps(generator, targets[0], "red dog", AttentionSettings(draws=2))
    assert found.words == ("red", "dog") and found.maps.shape == (2, *generator.image_size)
    assert 0 < found.maps.sum(0).max() < 1  # the rest looks at the marks around the prompt


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_family_with_joint_attention_is_refused_in_one_line(family, targets, tmp_path):
    from pipelines import save_family

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
