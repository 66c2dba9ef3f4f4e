"""The recipe of the embedded model: its stages resume, and what it writes is an ordinary diffusers folder."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ph2p.models.generators import load_generator
from ph2p.models.scorer import load_scorer
from ph2p.tiny import pretrain
from ph2p.tiny.recipe.image_tower import ClipImageStage
from ph2p.tiny.recipe.scenes import to_unit
from ph2p.tiny.recipe.stage import STAGES, fit
from ph2p.tiny.recipe.vae import VaeStage, principal_components
from ph2p.world import scenes as world
from ph2p.world.drawing import render

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


@pytest.mark.slow
def test_the_recipe_writes_a_folder_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClipImageStage, "known", 8)  # all of them are painted
    steps = [f"--{stage}-steps=2" for stage in ("clip", "vae", "unet", "clip-image")]
    stages = ["--stages", "tokenizer", "clip", "vae", "unet", "clip_image"]
    folders = [f"--work={tmp_path / 'work'}", f"--weights={tmp_path / 'weights'}"]
    pretrain.pretrain(pretrain.parse([*folders, "--scenes=300", f"--precision={PRECISION}", *steps, *stages]))

    generator = load_generator(tmp_path / "weights", allowlist=(tmp_path / "weights" / "words.txt").read_text().split())
    assert generator.schedule.prediction_type == "v_prediction"
    assert generator.schedule.alphas_cumprod[-1] < 1e-6  # pure noise at the end
    assert generator.latent_shape == (20, 8, 8)
    words = {
        word for group in (world.SHAPES, world.COLOUR_WORDS, world.SIZES) for names in group.values() for word in names
    }
    allowed = {generator.vocabulary.decode([i]) for i in generator.vocabulary.allowed_ids.tolist()}
    assert words - {"left of", "right of"} <= allowed
    scorer = load_scorer(tmp_path / "weights" / "clip")
    tower = generator.pipeline.text_encoder.get_input_embeddings().weight
    assert torch.equal(tower, scorer.model.text_model.get_input_embeddings().weight)
