"""The shipped weights reach their bars on held-out scenes, and the methods find real prompts with them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ph2p import invert, load_config, load_inverter
from ph2p.config.compose import PACKAGE
from ph2p.data import WorldTargets
from ph2p.tiny import bars
from ph2p.world import scenes as world
from ph2p.world.drawing import render

WEIGHTS = PACKAGE / "tiny" / "weights"
OPTIONS = ["generator.steps=15", "evaluation.renders=1"]


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_folder_is_small_and_holds_no_pickle():
    assert size(WEIGHTS) < 30e6
    assert not [path for path in WEIGHTS.rglob("*") if path.suffix in (".bin", ".pt", ".ckpt", ".pkl")]


@pytest.mark.slow
def test_every_bar_is_reached():
    figures = bars.measure(WEIGHTS)
    assert set(figures) == set(bars.BARS)
    assert not {name: figure for name, figure in figures.items() if not bars.passes(name, figure)}


@pytest.mark.slow
def test_a_red_square_is_called_red_and_square():
    result = invert(PACKAGE / "examples" / "red-square.png", OPTIONS)
    said = set(result.prompt.split())
    assert said & set(world.COLOUR_WORDS["red"])
    assert said & set(world.SHAPES["square"])
    assert "white" in said
    assert result.forward_samples + result.backward_samples <= 5000


def test_shapes_are_read_off_pictures_and_not_off_captions():
    scenes = [world.scene("val", index, objects=1) for index in range(40)]
    pictures = torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2) / 255
    assert bars.shapes_by_geometry(pictures, scenes) == 1
    others = [
        replace(s, things=(replace(t, shape="ring" if t.shape != "ring" else "star"),))
        for s in scenes
        for t in s.things
    ]
    assert bars.shapes_by_geometry(pictures, others) == 0


@pytest.mark.slow
def test_ph2p_plus_beats_as_many_samples_of_random_prompts():
    inverter = load_inverter(load_config(["method=ph2p_plus", *OPTIONS]))
    targets = WorldTargets(4, seed=5, objects=1, image_size=64)
    scenes = [targets.load(index) for index in range(len(targets))]
    found = inverter(scenes)
    prompts = ["method.restarts=306", "method.selection.shortlist=306"]  # what 5,000 samples pay for
    inverter.cfg = load_config(["method=random", "method.budget=5000", *prompts, *OPTIONS])
    guessed = inverter(scenes)
    assert sum(a.regret for a in found) < sum(b.regret for b in guessed)
