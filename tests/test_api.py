"""Prompt inversion from Python: what it takes, what it refuses, and that a place in a list changes nothing."""

import logging
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ph2p import TargetError, UserError, invert, load_config, load_inverter, score
from ph2p.config.keywords import as_overrides
from ph2p.data.images import as_pillow
from ph2p.evaluation.score import as_lines

SMALL = ["method=random", "method.budget=200", "method.restarts=4", "method.prompt_length=4"]


@pytest.fixture(scope="module")
def inverter(inverter_of):
    return inverter_of(*SMALL, "batch_size=2", "method.selection.steps=2", "evaluation.draws=4", "generator.steps=2")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    ramp = np.arange(20 * 24 * 3).reshape(20, 24, 3)
    return (np.abs(np.sin(ramp / 7)) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def file(tmp_path_factory, pixels) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "ramp.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def alone(inverter, file):
    return invert(file, inverter=inverter)


# --- pictures -----------------------------------------------------------------------------------------------------


def test_a_picture_has_the_same_prompt_in_every_form_and_place(inverter, file, pixels, alone, monkeypatch):
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    monkeypatch.setenv("PICS", str(file.parent))
    forms = [
        str(file),
        f"$PICS/{file.name}",
        Image.open(file),
        pixels,
        pixels / 255,
        tensor,
        tensor.float() / 255,
        pixels,
    ]
    other, *same = invert([255 - pixels, *forms], inverter=inverter)
    assert {result.prompt for result in same} == {alone.prompt}
    assert all(seen(result) == seen(alone) for result in same) and seen(other) != seen(alone)
    assert [result.loss for result in same] == pytest.approx([alone.loss] * len(forms))
    assert (alone.image_id, same[2].image_id) == ("ramp.png", "image-3")


def seen(result) -> set[tuple[int, ...]]:
    """The prompts that were tried: at random, keyed by the picture."""
    return {tuple(candidate.token_ids) for candidate in result.candidates}


def test_pictures_are_read_batch_by_batch(inverter, file, monkeypatch):
    seen, original = [], type(inverter).__call__

    def call(self, targets, *args, **options):
        seen.append(len(opened))
        return original(self, targets, *args, **options)

    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **options: opened.append(1) or real(*args, **options))
    monkeypatch.setattr(type(inverter), "__call__", call)
    assert len(invert((file for _ in range(5)), inverter=inverter)) == 5
    assert seen == [2, 4, 5]


def test_one_broken_picture_loses_no_other(inverter, file, tmp_path, alone):
    cut = tmp_path / "cut.png"
    cut.write_bytes(file.read_bytes()[:-200])
    some = [cut, file, tmp_path / "nowhere.png", np.full((8, 8, 3), 2.0), Image.open(cut)]
    first, found, missing, outside, late = invert(some, inverter=inverter)
    assert found.prompt == alone.prompt
    assert "cut.png" in str(first) and "does not exist" in str(missing)
    assert str(outside).startswith("image-3: ") and "[0, 1]" in str(outside)
    assert str(late).startswith("image-4: ")
    assert all(isinstance(error, TargetError) and "\n" not in str(error) for error in (first, missing, outside, late))
    with pytest.raises(TargetError, match=r"cut\.png"):
        invert(cut, inverter=inverter)


def test_any_text_can_be_scored_beside_a_found_prompt(inverter, file, alone):
    texts = [alone.prompt, "red dog above", ""]
    found, typed, empty = score(file, texts, inverter=inverter)
    assert [s.text for s in (found, typed, empty)] == texts
    assert found.loss == pytest.approx(alone.loss, rel=1e-5)  # on the draws that the run measured with
    assert found.loss_empty == typed.loss_empty == pytest.approx(alone.loss_empty, rel=1e-5)
    assert empty.loss == empty.loss_empty and empty.gap_closed == 0
    assert typed.gap_closed == pytest.approx(1 - typed.loss / typed.loss_empty)
    (one,) = score(file, "red dog above", inverter=inverter)
    assert replace(one, clip_similarity=0) == replace(typed, clip_similarity=0)
    assert one.clip_similarity == pytest.approx(typed.clip_similarity, abs=1e-6)  # of a batch of another size
    none, first, *_, last = as_lines([found, typed, empty])
    assert none.endswith("no words") and alone.prompt in first and "no better than no words" in last
    with pytest.raises(UserError, match="texts: give at least one"):
        score(file, [], inverter=inverter)


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (b"\x89PNG", "Image.open"),
        ("https://example.org/a.png", "download"),
        ("data:image/png;base64,AAAA", "address"),
        ("$NO_SUCH_VARIABLE/a.png", "does not exist"),
        ("", "folder"),
        (Image.new("RGB", (0, 4)), "no pixels"),
        (".", "folder"),
        ("~/no/such/file.png", "does not exist"),
        (5, "int: no picture"),
        ([3.0], "float: no picture"),
        (np.zeros((2, 8, 8, 3)), "list of them"),
        (np.zeros((3, 8, 8)), r"arrays? \(H, W, 3\)"),
        (np.zeros((8, 8, 3), np.int64), "int64"),
        (torch.full((3, 8, 8), torch.nan), r"\[0, 1\]"),
    ],
    ids=lambda value: None if isinstance(value, Image.Image) else str(value),  # its text holds an address
)
def test_what_is_no_picture_is_said(picture, said, inverter):
    with pytest.raises(UserError, match=said) as caught:
        invert(picture, inverter=inverter)
    assert "\n" not in str(caught.value)


def test_what_is_no_picture_is_said_before_a_model_is_loaded():
    for picture in (b"", "~/no/such/file.png", ["https://example.org/a.png"]):
        with pytest.raises(UserError, match=r"Image.open|not exist|address"):
            invert(picture, generator="no/where")


def test_arrays_become_pictures_to_the_last_bit(pixels):
    for form in (pixels, pixels / 255, torch.from_numpy(pixels / 255).movedim(2, 0), pixels.astype(np.float16) / 255):
        np.testing.assert_array_equal(np.asarray(as_pillow(form)), pixels)
    grey, clear = pixels[..., 0], np.dstack([pixels, pixels[..., :1]])
    assert as_pillow(grey).mode == as_pillow(grey[..., None]).mode == as_pillow(torch.from_numpy(grey)).mode == "L"
    assert as_pillow(clear).mode == "RGBA"
    assert as_pillow(torch.rand(3, 8, 9, dtype=torch.bfloat16)).size == (9, 8)


# --- keys ---------------------------------------------------------------------------------------------------------


def test_keywords_are_words_of_the_command_line():
    options = dict(generator="sd15", method="ph2p", device="cuda", prompt_length=8, timesteps=(400, 900))
    options |= dict(optimizer={"max_eval": 5}, evaluation={"renders": 2}, batch_size=3, init="a photo, of [a] cat's")
    cfg = load_config(as_overrides(**options, seed=4))
    assert (cfg.generator.name, cfg.method.name, cfg.trainer["accelerator"]) == ("sd15", "ph2p", "cuda")
    assert (cfg.method.prompt_length, list(cfg.method.timesteps), cfg.method.optimizer["max_eval"]) == (
        8,
        [400, 900],
        5,
    )
    assert (cfg.evaluation.renders, cfg.batch_size, cfg.seed) == (2, 3, 4)
    assert cfg.method.init == "a photo, of [a] cat's"


def test_paths_and_devices_as_keywords():
    assert as_overrides(generator="owner/model", scorer=Path("/models/a b")) == [
        *("generator=folder", "generator.path=owner/model", "scorer=folder", "scorer.path='/models/a b'")
    ]
    assert as_overrides(device=torch.device("cuda", 1)) == ["trainer.accelerator=cuda", "trainer.devices=[1]"]
    assert as_overrides(device="cpu:0", fit="pad") == ["trainer.accelerator=cpu", "data.fit=pad"]
    assert as_overrides(search=None, snap=True) == ["method.search=null", "method.snap=true"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompt_lenght": 8}, "did you mean prompt_length"),
        ({"output": "x"}, "no such keyword"),
        ({"method": "zzz"}, "method"),
        ({"prompt_length": 0}, "prompt_length"),
    ],
    ids=str,
)
def test_a_wrong_keyword_is_one_line(options, said, file):
    for function in (load_inverter, lambda **options: invert(file, **options)):
        with pytest.raises(UserError, match=said) as caught:
            function(**options)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["data.path=x", "data=world", "name=x", "output=x", "resume=force", "shard=0/2"])
def test_words_without_an_effect_are_refused(word):
    with pytest.raises(UserError, match=f"^{word}: has no effect here"):
        load_inverter(["method=ph2p", word])


def test_an_inverter_takes_no_further_keys(inverter, file):
    for given in (dict(overrides=["method=zzz"]), dict(method="pez"), dict(overrides=["seed=1"])):
        with pytest.raises(UserError, match="load_inverter"):
            invert(file, inverter=inverter, **given)


def test_python_stays_in_its_process(file):
    with pytest.raises(UserError, match=r"trainer\.devices"):
        invert(file, ["trainer.devices=2"])


def test_a_list_and_keywords_and_a_configuration_load_the_same(model_overrides):
    words = [*model_overrides, "debug=quick", *SMALL]
    one = load_inverter(words, seed=3).cfg
    assert one == load_inverter(load_config([*words, "seed=3"])).cfg
    assert one.method.name == "random" and one.seed == 3
    with pytest.raises(UserError, match="load_config"):
        load_inverter(load_config(words), seed=3)
    with pytest.raises(UserError, match="a list"):
        load_inverter("method=ph2p")


# --- manners ------------------------------------------------------------------------------------------------------


def test_filters_and_levels_stay_as_they_were(model_overrides, file):
    warnings.simplefilter("error")
    logger = logging.getLogger("lightning.pytorch")
    before, level = list(warnings.filters), logger.level
    found = load_inverter([*model_overrides, "debug=quick", *SMALL, "trainer=cpu", "evaluation.draws=2"])
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        inside = list(warnings.filters)
        invert(file, inverter=found)
        assert list(warnings.filters) == inside
    assert list(warnings.filters) == before and logger.level == level


def test_a_fluency_without_a_language_model_is_said(model_overrides, file):
    small = ["debug=quick", "method.prompt_length=4", "method.search.max_length=6", "trainer=cpu"]
    words = [*model_overrides, *small, "method.language_model=null"]
    with pytest.warns(UserWarning, match=r"^No language model weighs how prompts read: method\.language_model="):
        load_inverter(words)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        score(file, "red dog", words)  # a text is given, and nothing is weighed


def test_progress_is_shown_when_asked_for(inverter, file, capsys):
    invert([file, file], inverter=inverter)
    assert capsys.readouterr().out == ""
    invert([file, file], inverter=inverter, progress=True)
    assert "2/2" in capsys.readouterr().out


def test_no_pictures_are_no_results():
    assert invert([], generator="no/where") == []
