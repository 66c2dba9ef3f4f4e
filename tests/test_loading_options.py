"""What saves memory or time changes no result: offloading, tiles, checkpointing and compiling."""

import shutil

import diffusers
import pytest
import torch
from checkpoints import TEXT, prediction
from pipelines import save_family, save_pipeline

from ph2p.errors import UserError
from ph2p.models.counter import Spent
from ph2p.models.generators import load_generator


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("options")
    made = {name: save_family(root / name, name) for name in ("sdxl", "sd3", "flux", "pixart")}
    return made | {"sd": save_pipeline(root / "sd")}


def test_offloaded_parts_are_on_the_device_only_while_they_work(folders, monkeypatch):
    generator = load_generator(folders["sd3"], offload=True)
    moves = []
    for name in ("vae", "text_encoder_3"):
        part = generator.components[name]
        monkeypatch.setattr(part, "to", lambda *to, name=name: moves.append((name, str(to[0]))))
    monkeypatch.setattr(type(generator), "device", property(lambda self: torch.device("cpu", 0)))
    generator.encode_images(torch.rand(1, 3, 16, 16))
    assert moves == [("vae", "cpu:0"), ("vae", "cpu")]
    moves.clear()
    for _ in range(2):  # the second time the text is known
        generator.condition(torch.tensor([generator.vocabulary.encode(TEXT)]))
    assert moves == [("text_encoder_3", "cpu:0"), ("text_encoder_3", "cpu")]


@pytest.mark.parametrize("name", ["sd", "sd3", "flux"])
def test_offloading_changes_no_result(folders, name):
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    results = []
    for offload in (False, True):
        generator = load_generator(folders[name], offload=offload, image_size=16)
        results.append([prediction(generator, gradient) for gradient in (False, True)])
        results[-1] += [generator.encode_images(picture), generator.sample([TEXT], [0], steps=2)]
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_gradient_checkpointing_changes_no_gradient(folders):
    for name in ("sdxl", "sd3", "pixart"):
        saving, plain = (load_generator(folders[name], gradient_checkpointing=on) for on in (True, False))
        assert any(getattr(part, "gradient_checkpointing", False) for part in saving.denoiser.modules())
        torch.testing.assert_close(prediction(saving, gradient=True), prediction(plain, gradient=True))


def test_tiles_change_pictures_that_are_larger_than_one_and_as_the_pipeline_does(folders):
    tiled, whole = (load_generator(folders["sd"], vae_tiling=on) for on in (True, False))
    vae = diffusers.AutoencoderKL.from_pretrained(folders["sd"], subfolder="vae").eval()
    vae.enable_tiling()
    scale = vae.config.scaling_factor
    for side in (16, 32):  # the tile is 16 pixels wide
        pictures = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(2))
        latents = whole.encode_images(pictures)
        with torch.no_grad():
            expected = vae.encode(2 * pictures - 1).latent_dist.mode() * scale
            painted = (vae.decode(latents / scale).sample / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(tiled.encode_images(pictures), expected)
        torch.testing.assert_close(tiled.decode_latents(latents), painted)
        same = torch.equal(tiled.encode_images(pictures), latents)
        assert same == torch.equal(tiled.decode_latents(latents), whole.decode_latents(latents)) == (side == 16)


def test_compiling_needs_a_compiler(folders, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"generator.compile=true: .* compiler .*; install it, name another in CXX"):
        load_generator(folders["sd"], compile=True)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler for the CPU; there is no g++")
def test_a_compiled_denoiser_gives_the_same_predictions_and_gradients(folders):
    compiled, plain = (load_generator(folders["sd"], compile=on) for on in (True, False))
    for rows in (1, 3):
        found, expected = (rows_of(generator, rows) for generator in (compiled, plain))
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert compiled.counter.read() == plain.counter.read() == Spent(4, 4)
    assert hasattr(compiled.denoiser.forward, "_torchdynamo_orig_callable")


def rows_of(generator, rows):
    """Prediction and prompt's gradient of so many rows, each with noise and a timestep of its own."""
    ids = torch.tensor([generator.vocabulary.encode(TEXT)] * rows)
    noisy = torch.randn(rows, *generator.latent_shape, generator=torch.Generator().manual_seed(rows))
    prompt = generator.vocabulary.embed(ids).requires_grad_()
    output = generator.predict(noisy, torch.arange(rows) * 100 + 600, generator.condition(ids, prompt))
    return output.detach(), torch.autograd.grad(output.square().sum(), prompt)[0]
