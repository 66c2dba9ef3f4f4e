"""Targets from files of every kind, draws that depend on nothing else, the data module under a Trainer."""

import io
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from ph2p import data
from ph2p.data import FolderTargets, TargetError, WorldTargets, slug
from ph2p.data.images import complaint
from ph2p.errors import UserError
from ph2p.inversion.draws import Draws, make_draws
from ph2p.inversion.steps import InversionData

SIZE = 16
RED = (200, 40, 20)


def assert_colour(image: torch.Tensor, colour: tuple[int, int, int], tolerance: float = 2.0) -> None:
    """Check a plain (3, H, W) picture of [0, 1] against an 8-bit colour."""
    assert image.shape == (3, SIZE, SIZE) and image.dtype == torch.float32
    expected = torch.tensor(colour, dtype=torch.float32).view(3, 1, 1)
    assert (image * 255 - expected).abs().max() <= tolerance


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


# --- one picture ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tiff", "tif"])
def test_every_format_loads(tmp_path, suffix):
    path = saved(tmp_path / f"a.{suffix}", Image.new("RGB", (40, 30), RED))
    assert_colour(data.load_image(path, SIZE), RED, tolerance=6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 200), (200, 3), (20_000, 10)])
def test_extreme_shapes_are_resized_and_cropped(tmp_path, shape):
    assert_colour(data.load_image(saved(tmp_path / "a.png", Image.new("RGB", shape, RED)), SIZE), RED)


def test_the_centre_square_is_kept(tmp_path):
    image = Image.new("RGB", (90, 30), "black")
    image.paste(RED, (30, 0, 60, 30))
    assert_colour(data.from_pil(image, SIZE), RED, tolerance=16)  # the filter looks a little beyond the edge


def test_shrinking_is_antialiased():
    checkers = np.indices((512, 512)).sum(0) % 2 * 255
    image = data.from_pil(Image.fromarray(checkers.astype(np.uint8)), SIZE)
    assert (image - 0.5).abs().max() < 0.02


@pytest.mark.parametrize("white", [65535, 4000])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, white):
    ramp = np.tile(np.linspace(0, white, 64).astype(np.uint16), (64, 1))
    image = data.load_image(saved(tmp_path / "a.png", Image.fromarray(ramp)), SIZE)
    assert image[:, :, 0].max() < 0.05
    assert image[:, :, -1].mean() == pytest.approx(white / 65535, rel=0.05)
    assert image[0, 0].diff().min() > 0


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.full((9, 9), 0.5, np.float32), 128),
        (np.full((9, 9), 100, np.float32), 100),
        (np.full((9, 9), 32768, np.int32), 128),
        (np.full((9, 9), 2**30, np.int32), 255),
        (np.full((9, 9), np.nan, np.float32), 0),
    ],
)
def test_wide_grey_modes(pixels, expected):
    assert_colour(data.from_pil(Image.fromarray(pixels), SIZE), (expected,) * 3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV"])
def test_other_modes(mode):
    white = Image.new("RGB", (20, 20), "white").convert(mode)
    assert_colour(data.from_pil(white, SIZE), (255, 255, 255))


def test_cmyk_jpeg_and_palette_png(tmp_path):
    image = Image.new("RGB", (20, 20), RED)
    assert_colour(data.load_image(saved(tmp_path / "a.jpg", image.convert("CMYK")), SIZE), RED, tolerance=8)
    assert_colour(data.load_image(saved(tmp_path / "a.png", image.quantize()), SIZE), RED)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La", "PA"])
def test_transparent_lies_on_white(mode):
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    image = {"La": lambda: clear.convert("LA").convert("La"), "PA": lambda: clear.convert("P").convert("PA")}
    image = image.get(mode, lambda: clear.convert(mode))()
    if mode == "PA":
        image.putalpha(0)
    assert_colour(data.from_pil(image, SIZE), (255, 255, 255))


def test_half_transparent_and_hidden_colours(tmp_path):
    half = saved(tmp_path / "half.png", Image.new("RGBA", (20, 20), (0, 0, 0, 128)))
    assert_colour(data.load_image(half, SIZE), (127, 127, 127))
    # A white disc whose transparent surroundings are secretly black stays white at its edge.
    hidden = np.zeros((64, 64, 4), np.uint8)
    hidden[16:48, 16:48] = 255
    assert_colour(data.from_pil(Image.fromarray(hidden), SIZE), (255, 255, 255))


def test_palette_transparency(tmp_path):
    image = Image.new("P", (20, 20), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    for name in ("a.gif", "a.png"):
        path = saved(tmp_path / name, image, transparency=0)
        assert_colour(data.load_image(path, SIZE), (255, 255, 255))


def test_exif_rotation(tmp_path):
    image = Image.new("RGB", (40, 40), "black")
    image.paste(RED, (0, 0, 40, 20))  # red on top; stored so, meant to be turned a quarter clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = data.load_image(saved(tmp_path / "a.png", image, exif=exif), SIZE)
    assert turned[0, :, -2].min() > 0.7 and turned[0, :, 1].max() < 0.1  # red on the right


def test_broken_exif_keeps_the_picture(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.new("RGB", (20, 20), RED), exif=b"Exif\x00\x00nonsense")
    assert_colour(data.load_image(path, SIZE), RED, tolerance=6)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_first_frame_of_an_animation(tmp_path, suffix):
    frames = [Image.new("RGB", (20, 20), colour) for colour in (RED, (0, 0, 255))]
    path = saved(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], duration=100)
    assert_colour(data.load_image(path, SIZE), RED, tolerance=6)


# --- bad files ------------------------------------------------------------------------------------


def as_bytes(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
BAD = {
    "text.png": (b"hello", "not a picture"),
    "empty.png": (b"", "empty (0 bytes)"),
    **{f"cut.{kind}": (as_bytes(NOISE, kind)[:-2000], "damaged or cut off") for kind in ("png", "jpeg", "webp", "bmp")},
    "header.png": (as_bytes(NOISE, "png")[:20], ""),
    "flipped.png": (as_bytes(NOISE, "png").replace(b"IDAT", b"IDAX"), ""),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_give_one_clear_line(tmp_path, name):
    content, words = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TargetError) as caught:
        data.load_image(tmp_path / name, SIZE)
    message = str(caught.value)
    assert name in message and words in message and "\n" not in message
    assert isinstance(caught.value, UserError)


def test_a_decompression_bomb_is_refused(tmp_path):
    saved(tmp_path / "bomb.png", Image.new("1", (20_000, 20_000)))
    with pytest.raises(TargetError, match=r"bomb\.png.*megapixels: scale it down"):
        data.load_image(tmp_path / "bomb.png", SIZE)


def test_a_large_photograph_loads_without_a_warning(tmp_path):
    path = saved(tmp_path / "a.png", Image.new("1", (10_000, 9_000), 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_colour(data.load_image(path, SIZE), (255, 255, 255))


def test_unreadable_missing_and_folder(tmp_path):
    with pytest.raises(TargetError, match="does not exist"):
        data.load_image(tmp_path / "no.png", SIZE)
    with pytest.raises(TargetError, match="is a folder"):
        data.load_image(tmp_path, SIZE)
    # root may read everything: a real chmod proves nothing
    assert "chmod" in complaint(tmp_path / "a.png", PermissionError(13, "Permission denied"))


# --- folders --------------------------------------------------------------------------------------


def test_folder_is_recursive_sorted_and_passes_over_hidden(tmp_path):
    image = Image.new("RGB", (8, 8), RED)
    names = ["b.png", "sub/a b.JPG", "a.webp", "ünï/星 🌟.gif"]
    for name in [*names, ".hidden.png", ".cache/c.png", "sub/._a.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image.save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    targets = FolderTargets(tmp_path, image_size=SIZE)
    assert targets.ids == sorted(names) and len(targets) == 4
    target = targets.load(3)
    assert target.image_id == "ünï/星 🌟.gif" and target.source == str(tmp_path / "ünï/星 🌟.gif")
    assert target.caption is None and target.words is None
    assert_colour(target.image, RED, tolerance=6)


def test_a_bad_file_fails_alone(tmp_path):
    (tmp_path / "a.png").write_text("no")
    (tmp_path / "b.png").symlink_to(tmp_path / "nowhere.png")
    saved(tmp_path / "c.png", Image.new("RGB", (8, 8), RED))
    targets = FolderTargets(tmp_path, image_size=SIZE)
    assert targets.ids == ["a.png", "b.png", "c.png"]
    for index in (0, 1):
        with pytest.raises(TargetError, match=targets.ids[index]):
            targets.load(index)
    assert_colour(targets.load(2).image, RED)


def test_a_single_file(tmp_path):
    targets = FolderTargets(saved(tmp_path / "photo", Image.new("RGB", (8, 8), RED), format="png"), image_size=SIZE)
    assert targets.ids == ["photo"]
    assert_colour(targets.load(0).image, RED)


def test_folder_with_none_and_no_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(UserError, match=rf"data\.path={tmp_path}: no pictures found.*png, jpg.*notes\.txt"):
        FolderTargets(tmp_path, image_size=SIZE)
    with pytest.raises(UserError, match=r"data\.path=.*nowhere: no such file or folder"):
        FolderTargets(tmp_path / "nowhere", image_size=SIZE)


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such names")
def test_names_that_are_no_text(tmp_path):
    odd = Path(str(tmp_path), "new\nline \udcff.png")  # a newline and a byte that is no UTF-8
    saved(odd, Image.new("RGB", (8, 8), RED))
    targets = FolderTargets(tmp_path, image_size=SIZE)
    target = targets.load(0)
    assert target.image_id == r"new\nline \udcff.png"
    target.source.encode()  # can be written and printed
    odd.write_bytes(b"broken")
    with pytest.raises(TargetError) as caught:
        targets.load(0)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such names")
def test_names_that_are_written_alike_stay_two_images(tmp_path):
    for name in ("a\nb.png", r"a\nb.png", "c.png"):
        saved(tmp_path / name, Image.new("RGB", (8, 8), RED))
    ids = FolderTargets(tmp_path).ids
    assert len(set(ids)) == 3 and "c.png" in ids


def test_slug_is_safe_and_unique():
    names = ["a/b.png", "a-b.png", "b.png", "b.jpg", "B.png", "../..", "", "星.png", "x" * 400, "\udcff"]
    slugs = [slug(name) for name in names]
    assert len(set(slugs)) == len(names)
    assert slug("sub/My Photo (1).png").startswith("my-photo-1-")
    for name in slugs:
        assert name.isascii() and name.replace("-", "").isalnum() and len(name) < 60
    assert slug("b.png") == slugs[2]


# --- the world ------------------------------------------------------------------------------------


def test_world_targets_carry_their_truth():
    targets = WorldTargets(count=3, seed=7, objects=1, image_size=64)
    assert len(targets) == 3 and len(set(targets.ids)) == 3
    target = targets.load(2)
    assert target.image.shape == (3, 64, 64) and target.image.min() >= 0 and target.image.max() <= 1
    assert target.caption and all(any(w in target.caption.split() for w in words) for words in target.words)
    again = WorldTargets(count=9, seed=7, objects=1, image_size=64).load(2)
    assert again.image_id == target.image_id and torch.equal(again.image, target.image)
    other = WorldTargets(count=3, seed=8, objects=1, image_size=32).load(2)
    assert other.image_id != target.image_id and other.image.shape == (3, 32, 32)
    assert WorldTargets(count=1, seed=0, objects=None, image_size=64).ids == ["test-0-any-0000"]


@pytest.mark.parametrize(
    "bad",
    [{"count": 0}, {"count": None}, {"seed": -1}, {"objects": 3}, {"split": "demo"}, {"fit": "cut"}, {"split": ""}],
)
def test_world_refuses_bad_values(bad):
    with pytest.raises(UserError, match=rf"data\.{next(iter(bad))}\b"):
        WorldTargets(**{"count": 2, **bad})


# --- draws ----------------------------------------------------------------------------------------

SHAPE = (3, 2, 2)


def draws_of(ids: list[str], key: tuple = ("epoch", 0, "step", 0), seed: int = 0, count: int = 5) -> Draws:
    return make_draws(seed, ids, key, count, (500, 1000), SHAPE)


def test_draws_do_not_depend_on_the_batch():
    alone, together = draws_of(["b"]), draws_of(["c", "a", "b"])
    assert together.timesteps.shape == (3, 5) and together.timesteps.dtype == torch.long
    assert together.noise.shape == (3, 5, *SHAPE) and together.noise.dtype == torch.float32
    assert torch.equal(alone.noise[0], together.noise[2])
    assert torch.equal(alone.timesteps[0], together.timesteps[2])
    torch.rand(3)  # nor on the global generator
    assert torch.equal(draws_of(["b"]).noise, alone.noise)


def test_draws_depend_on_seed_image_and_key():
    kinds = [draws_of(["a"]), draws_of(["b"]), draws_of(["a"], seed=1), draws_of(["a"], ("validation",))]
    kinds += [draws_of(["a"], ("epoch", 1, "step", 0)), draws_of(["a"], ("epoch", 0, "step", 1))]
    noises = torch.stack([d.noise for d in kinds]).flatten(1)
    distances = torch.cdist(noises, noises) + torch.eye(len(kinds)) * 9
    assert distances.min() > 1


def test_draws_are_the_same_in_another_process():
    code = (
        "from ph2p.inversion.draws import make_draws;"
        "draws = make_draws(0, ['a', 'ü'], ('epoch', 3, 'step', 0), 5, (500, 1000), (3, 2, 2));"
        "print(draws.timesteps.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(draws_of(["a", "ü"], ("epoch", 3, "step", 0)).timesteps.tolist())


@pytest.mark.parametrize(("count", "span"), [(4, (500, 1000)), (7, (500, 1000)), (3, (0, 3)), (8, (5, 8))])
def test_timesteps_are_stratified(count, span):
    timesteps = make_draws(0, [str(i) for i in range(200)], ("x",), count, span, (1,)).timesteps.double()
    edges = span[0] + torch.arange(count + 1) * (span[1] - span[0]) / count
    assert (timesteps >= edges[:-1].floor()).all() and (timesteps <= edges[1:]).all()
    assert timesteps.min() >= span[0] and timesteps.max() < span[1]
    assert timesteps.mean().item() == pytest.approx((sum(span) - 1) / 2, rel=0.02)


def test_noise_is_normal():
    noise = make_draws(0, ["a"], ("x",), 16, (0, 10), (20, 8, 8)).noise
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03


def test_shifts_are_normal_and_leave_the_rest_of_the_draws_alone():
    deviation = torch.tensor([[0.0, 1.0, 3.0]]).expand(2, 3)
    shifted = [make_draws(0, ids, ("x",), 500, (500, 1000), SHAPE, deviation) for ids in (["a"], ["b", "a"])]
    plain = make_draws(0, ["a"], ("x",), 500, (500, 1000), SHAPE)
    assert plain.shifts is None and torch.equal(plain.noise, shifted[0].noise)
    assert torch.equal(plain.timesteps, shifted[0].timesteps)
    assert shifted[1].shifts.shape == (2, 500, 2, 3)
    assert torch.equal(shifted[0].shifts[0], shifted[1].shifts[1])
    assert torch.equal(shifted[1][1:, :3].shifts, shifted[1].shifts[1:, :3])
    torch.testing.assert_close(shifted[0].shifts.std(1)[0], deviation, atol=0, rtol=0.1)


@pytest.mark.parametrize(("count", "span"), [(0, (0, 9)), (1, (9, 9)), (1, (-1, 9))])
def test_draws_refuse_an_empty_range(count, span):
    with pytest.raises(UserError):
        make_draws(0, ["a"], ("x",), count, span, SHAPE)


# --- the data module ------------------------------------------------------------------------------


class Recorder(LightningModule):
    """Notes (epoch, batch index, draws) of every step; fails at one of them if told to."""

    def __init__(self, fail_at: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.fail_at = [], fail_at

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_index):
        latents, draws = batch
        assert isinstance(draws, Draws) and latents.shape[0] == draws.noise.shape[0]
        if (self.current_epoch, batch_index) == self.fail_at:
            raise RuntimeError("stopped")
        self.seen.append((self.current_epoch, batch_index, draws.noise.clone()))
        self.optimizers().step(lambda: (self.weight**2).sum())


def fit(module: Recorder, epochs: int, steps: int, checkpoint: Path | None = None) -> Trainer:
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=inversion_data(steps), ckpt_path=checkpoint)
    return trainer


def inversion_data(steps: int) -> InversionData:
    return InversionData(torch.zeros(2, *SHAPE), ["a", "b"], seed=0, draws=5, steps=steps)


def assert_right_draws(seen: list, steps: list[tuple[int, int]]) -> None:
    assert [(epoch, step) for epoch, step, _ in seen] == steps
    for epoch, step, noise in seen:
        assert torch.equal(noise, draws_of(["a", "b"], ("epoch", epoch, "step", step)).noise)


@pytest.mark.parametrize("steps", [1, 2])
def test_every_epoch_has_its_own_draws(steps):
    module = Recorder()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)
        warnings.filterwarnings("ignore", "The `srun` command")  # on a machine that has SLURM
        fit(module, epochs=3, steps=steps)
    assert_right_draws(module.seen, [(e, s) for e in range(3) for s in range(steps)])


@pytest.mark.parametrize("steps", [1, 2])
def test_a_resumed_run_goes_on_with_the_next_epoch(tmp_path, steps):
    fit(Recorder(), epochs=2, steps=steps).save_checkpoint(tmp_path / "last.ckpt")
    module = Recorder()
    fit(module, epochs=4, steps=steps, checkpoint=tmp_path / "last.ckpt")
    assert_right_draws(module.seen, [(e, s) for e in (2, 3) for s in range(steps)])


def test_a_run_stopped_inside_an_epoch_goes_on_with_its_step(tmp_path):
    stopped = Recorder(fail_at=(1, 1))
    stopped.on_exception = lambda error: stopped.trainer.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(RuntimeError, match="stopped"):
        fit(stopped, epochs=3, steps=3)
    assert_right_draws(stopped.seen, [(0, 0), (0, 1), (0, 2), (1, 0)])
    if not (tmp_path / "last.ckpt").exists():
        stopped.trainer.save_checkpoint(tmp_path / "last.ckpt")
    module = Recorder()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)
        warnings.filterwarnings("ignore", "The `srun` command")  # on a machine that has SLURM
        fit(module, epochs=3, steps=3, checkpoint=tmp_path / "last.ckpt")
    assert_right_draws(module.seen, [(1, 1), (1, 2), (2, 0), (2, 1), (2, 2)])


def test_without_a_trainer_it_is_epoch_0():
    batches = list(inversion_data(2).train_dataloader())
    assert len(batches) == 2
    assert torch.equal(batches[1][1].noise, draws_of(["a", "b"], ("epoch", 0, "step", 1)).noise)
