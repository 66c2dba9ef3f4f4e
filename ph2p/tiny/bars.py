"""What the embedded model must reach, measured on held-out scenes: the recipe's report and a test ask here.

python -m ph2p.tiny.bars --weights ph2p/tiny/weights
"""

import argparse
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ph2p.evaluation.texts import text_losses
from ph2p.inversion.draws import Draws, make_draws
from ph2p.models.generators import Generator, load_generator
from ph2p.models.painting import paint
from ph2p.models.scorer import Scorer, load_scorer
from ph2p.world import scenes as world
from ph2p.world.captions import canonical_caption
from ph2p.world.drawing import object_mask, render

# Figure: (bound, True if the figure must be at least the bound, what it is).
BARS: dict[str, tuple[float, bool, str]] = {
    "vae_psnr": (28.0, True, "VAE reconstruction, PSNR in dB"),
    "vae_colour_error": (0.06, False, "mean colour error of the objects, of full scale"),
    "clip_accuracy": (0.95, True, "CLIP picks the caption among 100"),
    "true_below_empty": (0.99, True, "denoising loss lower with the true caption than with none"),
    "true_below_swapped": (0.90, True, "... than with a swapped colour or shape"),
    "sample_accuracy": (0.85, True, "CLIP matches painted pictures to their captions among 100"),
    "sample_colour": (0.80, True, "colour of the painted object"),
    "sample_shape": (0.80, True, "shape of the painted object"),
    "sample_background": (0.80, True, "colour of the painted background"),
}
GUIDANCE = {"guidance_scale": 4.5, "guidance_rescale": 0.5}


def measure(
    weights: Path, count: int = 100, split: str = "test", seed: int = 0, device: str = "cpu"
) -> dict[str, float]:
    """Return every figure of `BARS`, over `count` scenes of a held-out split."""
    words = (weights / "words.txt").read_text().split()
    generator = load_generator(weights, device=device, allowlist=words)
    scorer = load_scorer(weights / "clip", device=device)
    scenes = [world.scene(split, index, seed) for index in range(count)]
    images = _images([render(scene) for scene in scenes]).to(device)
    captions = [canonical_caption(scene) for scene in scenes]
    painted = paint(generator, captions, list(range(count)), 30, GUIDANCE)
    return {
        **reconstruction(generator, scenes, images),
        "clip_accuracy": matching(scorer, images, captions),
        **caption_effect(generator, scenes, images),
        "sample_accuracy": matching(scorer, painted, captions),
        "sample_colour": named(scorer, painted, scenes, list(world.COLOURS), _with_colour),
        "sample_shape": shapes_by_geometry(painted, scenes),
        "sample_background": background_colours(painted, scenes),
    }


def _images(pictures: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255  # (B, 3, H, W)


def reconstruction(generator: Generator, scenes: list[world.Scene], images: Tensor) -> dict[str, float]:
    """Measure the VAE: mean PSNR, and how far the mean colour of each object moves."""
    decoded = torch.cat([generator.decode_latents(generator.encode_images(part)) for part in images.split(50)])
    psnr = -10 * (decoded - images).square().flatten(1).mean(1).log10()
    errors = []
    for scene, before, after in zip(scenes, images.cpu(), decoded.cpu(), strict=True):
        for thing in scene.things:
            mask = torch.from_numpy(object_mask(thing) > 0.95)
            errors.append((before[:, mask].mean(1) - after[:, mask].mean(1)).abs().mean())
    return {"vae_psnr": float(psnr.mean()), "vae_colour_error": float(torch.stack(errors).nanmean())}


def matching(scorer: Scorer, images: Tensor, captions: list[str]) -> float:
    """Share of the images whose own caption is the most similar of all."""
    similarity = scorer.image_features(images) @ scorer.text_features(captions).T
    return float((similarity.argmax(1).cpu() == torch.arange(len(captions))).double().mean())


def caption_effect(generator: Generator, scenes: list[world.Scene], images: Tensor, draws: int = 8) -> dict[str, float]:
    """Compare denoising losses at t in [500, 1000) under the true, the empty and a swapped caption."""
    latents = generator.encode_images(images)
    ids = [f"bars-{i}" for i in range(len(scenes))]
    fixed = make_draws(0, ids, ("bars",), draws, (500, 1000), generator.latent_shape).to(latents.device)
    true = _losses(generator, latents, [canonical_caption(s) for s in scenes], fixed)
    empty = _losses(generator, latents, [""] * len(scenes), fixed)
    swapped = _losses(generator, latents, [_swapped(s, i) for i, s in enumerate(scenes)], fixed)
    return {"true_below_empty": float((true < empty).mean()), "true_below_swapped": float((true < swapped).mean())}


def _losses(generator: Generator, latents: Tensor, texts: list[str], draws: Draws) -> np.ndarray:
    return np.array(text_losses(generator, latents, texts, draws))


def _swapped(scene: world.Scene, number: int) -> str:
    """The canonical caption with another colour (even numbers) or shape (odd ones) of the first object."""
    rng = np.random.default_rng([17, number])
    thing = scene.things[0]
    if number % 2:
        return _with_shape(scene, str(rng.choice([s for s in world.SHAPES if s != thing.shape])))
    taken = {thing.colour, scene.background}
    return _with_colour(scene, str(rng.choice([c for c in world.COLOURS if c not in taken])))


def _with_colour(scene: world.Scene, colour: str) -> str:
    return canonical_caption(replace(scene, things=(replace(scene.things[0], colour=colour), *scene.things[1:])))


def _with_shape(scene: world.Scene, shape: str) -> str:
    return canonical_caption(replace(scene, things=(replace(scene.things[0], shape=shape), *scene.things[1:])))


def named(
    scorer: Scorer,
    images: Tensor,
    scenes: list[world.Scene],
    names: list[str],
    caption: Callable[[world.Scene, str], str],
) -> float:
    """Zero-shot by CLIP: share of the images whose caption with the true name beats those with another one."""
    features, right = scorer.image_features(images), 0
    for scene, feature in zip(scenes, features, strict=True):
        texts = [caption(scene, name) for name in names]
        best = int((scorer.text_features(texts) @ feature).argmax())
        right += texts[best] == canonical_caption(scene)
    return right / len(scenes)


def shapes_by_geometry(images: Tensor, scenes: list[world.Scene]) -> float:
    """By pixels: share of the one-object pictures where the true shape fits best of all shapes.

    What differs from the border's colour is held against every shape in the scene's size and fill, anywhere in the
    picture: the best is the highest normalised cross-correlation. Of drawn scenes it reads 100 % rightly, of the
    VAE's reconstructions 96 % (200 of the validation split).
    """
    alone = [(image, scene) for image, scene in zip(images.cpu(), scenes, strict=True) if scene.place]
    right = 0
    for image, scene in alone:
        thing = scene.things[0]
        border = torch.cat([image[:, :2].flatten(1), image[:, -2:].flatten(1)], 1).median(1).values  # (3,)
        difference = (image - border[:, None, None]).abs().amax(0).numpy()  # (H, W)
        spectrum = np.fft.rfft2(difference - difference.mean())
        fits = np.fft.irfft2(spectrum * _templates(thing.size, thing.fill == "outlined"))  # (shapes, radii, H, W)
        right += list(world.SHAPES)[fits.max((1, 2, 3)).argmax()] == thing.shape
    return right / len(alone)


@functools.cache
def _templates(size: str, outlined: bool) -> np.ndarray:
    """Conjugate spectra (shapes, 3 radii, H, W // 2 + 1) of every shape's mask, at zero mean and unit norm."""
    fill = "outlined" if outlined else "solid"
    radii = [world.RADII[size] * share for share in (0.94, 1, 1.06)]
    things = [[world.Thing(shape, "red", size, fill, (32, 32), r, (0, 0, 0)) for r in radii] for shape in world.SHAPES]
    masks = np.array([[object_mask(thing) for thing in row] for row in things])
    masks -= masks.mean((2, 3), keepdims=True)
    return np.fft.rfft2(masks / np.linalg.norm(masks, axis=(2, 3), keepdims=True)).conj()


def background_colours(images: Tensor, scenes: list[world.Scene]) -> float:
    """By pixels: share of the images whose border's median colour is nearest to the true background."""
    names = list(world.COLOURS)
    palette = torch.tensor([world.COLOURS[name] for name in names]) / 255  # (12, 3)
    border = torch.cat([images[..., :2, :].flatten(2), images[..., -2:, :].flatten(2)], 2).median(2).values.cpu()
    nearest = torch.cdist(border, palette).argmin(1).tolist()
    return sum(names[k] == scene.background for k, scene in zip(nearest, scenes, strict=True)) / len(scenes)


def passes(name: str, figure: float) -> bool:
    bound, at_least, _ = BARS[name]
    return figure >= bound if at_least else figure <= bound


def show(figures: dict[str, float], console: Console | None = None) -> None:
    """Print the figures beside their bounds."""
    table = Table("figure", "value", "bound", "")
    for name, value in figures.items():
        bound, at_least, what = BARS[name]
        verdict = "reached" if passes(name, value) else "MISSED"
        table.add_row(what, f"{value:.3f}", f"{'>=' if at_least else '<='} {bound}", verdict)
    (console or Console()).print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path(__file__).with_name("weights"))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--split", choices=("val", "test"), default="test")
    arguments = parser.parse_args()
    show(measure(arguments.weights, arguments.count, arguments.split))
