"""Settings that all tests share: no network, few threads; and small random models where quality does not matter."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's client is imported, which reads it once
os.environ["WANDB_ERROR_REPORTING"] = "false"  # it would send its own errors to its makers
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or tokenizers warns in every forked process

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def model_overrides(tmp_path_factory) -> list[str]:
    """The command line's words for a random pipeline of 16-pixel pictures and a random CLIP model."""
    from pipelines import save_clip, save_pipeline

    folder = tmp_path_factory.mktemp("models")
    options = dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    paths = [save_pipeline(folder / "pipeline", **options), save_clip(folder / "clip")]
    return [f"generator.path={paths[0]}", f"scorer.path={paths[1]}", "generator.allowlist=null"]


@pytest.fixture(scope="session")
def generator(model_overrides):
    """The random pipeline in float64, where rounding does not decide between two tokens."""
    from ph2p.models.generators import load_generator

    return load_generator(model_overrides[0].partition("=")[2], dtype=torch.float64)


@pytest.fixture(scope="session")
def inverter_of(model_overrides, generator) -> Callable:
    """Make an `Inverter` of the random models from the command line's words; a few seconds' work an image."""
    from ph2p.config.compose import load_config
    from ph2p.inverter import Inverter
    from ph2p.models.scorer import load_scorer

    scorer = load_scorer(model_overrides[1].partition("=")[2])
    small = ["debug=quick", "method.prompt_length=4", "method.selection.shortlist=6", "trainer=cpu"]

    def make(*overrides: str) -> Inverter:
        return Inverter(generator, scorer, load_config([*model_overrides, *small, *overrides]))

    return make


@pytest.fixture(scope="session")
def targets():
    """Three scenes of the embedded world, 16 pixels wide, with their captions in words of the random model."""
    from dataclasses import replace

    from ph2p.data import WorldTargets

    captions = ["red square above a dog", "small blue circle", "green dogs below a café"]
    words = (frozenset({"red"}), frozenset({"square", "circle"}))
    world = WorldTargets(3, seed=5, image_size=16)
    return [replace(world.load(k), caption=caption, words=words) for k, caption in enumerate(captions)]


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).resolve().parents[1]
