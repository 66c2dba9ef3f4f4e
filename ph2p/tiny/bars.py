"""What a model of the second edition must reach, measured on held-out scenes in the held-out hand, with intervals.

python -m ph2p.tiny.bars --weights outputs/weights
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ph2p.evaluation.intervals import proportion_interval
from ph2p.evaluation.texts import text_losses
from ph2p.inversion.draws import make_draws
from ph2p.models.generators import Generator, load_generator
from ph2p.models.painting import paint
from ph2p.models.scorer import Scorer, load_scorer
from ph2p.tiny.recipe.judge import GROUNDS, NOUNS, Judge, load_judge, noun_of, where
from ph2p.world import scenes as world
from ph2p.world.captions import canonical_caption
from ph2p.world.drawing import render
from ph2p.world.scenes import COLOURS, Scene, Thing

# Figure: (what it is, the least it must be, None where it only stands beside the others).
BARS: dict[str, tuple[str, float | None]] = {
    "vae_psnr": ("VAE reconstruction, dB", 30.0),
    "clip_caption": ("CLIP picks the caption among 100", 0.97),
    "clip_thing": ("CLIP names a drawn thing, among all things", 0.85),
    "clip_shape": ("CLIP names a drawn shape, among shapes", 0.90),
    "true_below_none": ("denoising loss lower with the true caption than with none", 0.99),
    "true_below_noun": ("... than with another noun", 0.95),
    "true_below_colour": ("... than with another colour of a shape", 0.95),
    "true_below_background": ("... than with another background", 0.98),
    "judge_drawn": ("the judge reads the nouns of drawn pictures", None),
    "painted_noun": ("painted: the right nouns, no small object", 0.80),
    "painted_small": ("painted: the right nouns, with a small object", 0.60),
    "painted_background": ("painted: the right background", 0.95),
    "painted_colour": ("painted: the right colour of a shape", 0.90),
    "painted_where": ("painted: in the right place", 0.90),
}
GUIDANCE = {"guidance_scale": 5.0, "guidance_rescale": 0.5}
STEPS, DRAWS, CHOICES = 30, 8, 100


@dataclass(frozen=True)
class Figure:
    """A measured value, its 95 % interval and the number of cases."""

    value: float
    low: float
    high: float
    cases: int


def share(right: Sequence[bool]) -> Figure:
    """The share of cases that are right, with Wilson's interval; no cases give NaN."""
    if not right:
        return Figure(float("nan"), 0.0, 1.0, 0)
    return Figure(float(np.mean(right)), *proportion_interval(sum(right), len(right)), len(right))


def mean(values: Tensor) -> Figure:
    """The mean of values (N,), with the normal interval of its standard error."""
    centre, half = float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5
    return Figure(centre, centre - half, centre + half, len(values))


def measure(weights: Path, count: int = 400, split: str = "test", seed: int = 0) -> dict[str, Figure]:
    """Return every figure of `BARS`, over `count` scenes of a held-out split."""
    generator = load_generator(weights, allowlist=(weights / "words.txt").read_text().split())
    scorer, judge = load_scorer(weights / "clip"), load_judge(weights)
    scenes = [world.scene(split, index, seed) for index in range(count)]
    drawn = torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2) / 255  # (N, 3, H, W)
    painted = paint(generator, [canonical_caption(scene) for scene in scenes], list(range(count)), STEPS, GUIDANCE)
    return {
        "vae_psnr": mean(reconstruction(generator, drawn)),
        **clip_figures(scorer, drawn, scenes),
        **caption_figures(generator, drawn, scenes),
        "judge_drawn": share(judged(judge, drawn, scenes)["noun"]),
        **painted_figures(judge, painted.cpu(), scenes),
    }


def reconstruction(generator: Generator, images: Tensor) -> Tensor:
    """PSNR in dB of the VAE's reconstruction of images (N, 3, H, W) in [0, 1]: (N,)."""
    decoded = torch.cat([generator.decode_latents(generator.encode_images(part)) for part in images.split(50)])
    return -10 * (decoded.clamp(0, 1) - images).square().flatten(1).mean(1).log10()


def clip_figures(scorer: Scorer, images: Tensor, scenes: list[Scene]) -> dict[str, Figure]:
    """Which caption of 100 scenes CLIP finds closest, and which noun in the caption of a one-object scene."""
    features = scorer.image_features(images)
    texts = scorer.text_features([canonical_caption(scene) for scene in scenes])
    found = []
    for start in range(0, len(scenes) - len(scenes) % CHOICES or len(scenes), CHOICES):
        part = slice(start, start + CHOICES)
        found += ((features[part] @ texts[part].T).argmax(1).cpu() == torch.arange(len(features[part]))).tolist()
    named: dict[str, list[bool]] = {"clip_thing": [], "clip_shape": []}
    for scene, feature in zip(scenes, features, strict=True):
        if scene.place:
            first = scene.things[0]
            nouns = world.alike(first)
            captions = [canonical_caption(_renamed(scene, noun)) for noun in nouns]
            best = nouns[int((scorer.text_features(captions) @ feature).argmax())]
            named["clip_shape" if isinstance(first, Thing) else "clip_thing"].append(best == noun_of(first))
    return {"clip_caption": share(found), **{name: share(right) for name, right in named.items()}}


def _renamed(scene: Scene, noun: str) -> Scene:
    """The scene with another noun of the same kind for its first object."""
    first, *others = scene.things
    key = "shape" if isinstance(first, Thing) else "noun"
    return replace(scene, things=(replace(first, **{key: noun}), *others))


def caption_figures(generator: Generator, images: Tensor, scenes: list[Scene]) -> dict[str, Figure]:
    """How often the true caption has a lower denoising loss at t in [500, 1000) than none and than a changed one."""
    latents = generator.encode_images(images)
    ids = [f"bars-{i}" for i in range(len(scenes))]
    draws = make_draws(0, ids, ("bars",), DRAWS, (500, 1000), generator.latent_shape).to(latents.device)

    def losses(texts: list[str]) -> np.ndarray:
        return np.array(text_losses(generator, latents, texts, draws))  # (N,)

    true = losses([canonical_caption(scene) for scene in scenes])
    figures = {"true_below_none": share((true < losses([""] * len(scenes))).tolist())}
    for name in ("noun", "colour", "background"):
        changed = [changed_scene(scene, name, number) for number, scene in enumerate(scenes)]
        rows = np.array([scene is not None for scene in changed])
        texts = [canonical_caption(other or scene) for other, scene in zip(changed, scenes, strict=True)]
        figures[f"true_below_{name}"] = share((true < losses(texts))[rows].tolist())
    return figures


def changed_scene(scene: Scene, attribute: str, number: int) -> Scene | None:
    """The scene with another noun or colour of its first object or another background; None where it has none."""
    rng, first = np.random.default_rng([17, number]), scene.things[0]
    if attribute == "noun":
        return _renamed(scene, str(rng.choice([noun for noun in world.alike(first) if noun != noun_of(first)])))
    taken = {scene.background, *(thing.colour for thing in scene.things if isinstance(thing, Thing))}
    colour = str(rng.choice([colour for colour in COLOURS if colour not in taken]))
    if attribute == "background":
        return replace(scene, background=colour)
    if not isinstance(first, Thing):
        return None
    return replace(scene, things=(replace(first, colour=colour), *scene.things[1:]))


@torch.no_grad()
def judged(judge: Judge, images: Tensor, scenes: list[Scene]) -> dict[str, list[bool]]:
    """What the judge says of images (N, 3, H, W) in [0, 1]: by head, whether it is right.

    The nouns are right if those of the scene are the one or two likeliest of all; colours alike, and only where every
    object is a shape.
    """
    logits = judge(images * 2 - 1)
    right: dict[str, list[bool]] = {name: [] for name in logits}
    for row, scene in enumerate(scenes):
        nouns = {NOUNS.index(noun_of(thing)) for thing in scene.things}
        right["noun"].append(set(logits["noun"][row].topk(len(nouns)).indices.tolist()) == nouns)
        right["background"].append(GROUNDS[int(logits["background"][row].argmax())] == scene.background)
        right["where"].append(int(logits["where"][row].argmax()) == where(scene))
        if all(isinstance(thing, Thing) for thing in scene.things):
            colours = {GROUNDS.index(thing.colour) for thing in scene.things if isinstance(thing, Thing)}
            right["colour"].append(set(logits["colour"][row].topk(len(colours)).indices.tolist()) == colours)
    return right


def painted_figures(judge: Judge, images: Tensor, scenes: list[Scene]) -> dict[str, Figure]:
    """The judge's word on painted pictures, nouns apart by whether an object is small."""
    right = judged(judge, images, scenes)
    small = [any(thing.size == "small" for thing in scene.things) for scene in scenes]
    return {
        "painted_noun": share([r for r, s in zip(right["noun"], small, strict=True) if not s]),
        "painted_small": share([r for r, s in zip(right["noun"], small, strict=True) if s]),
        **{f"painted_{name}": share(right[name]) for name in ("background", "colour", "where")},
    }


def show(figures: dict[str, Figure], console: Console | None = None) -> None:
    """Print the figures with their intervals beside their bounds."""
    table = Table("figure", "value", "95 %", "cases", "at least", "")
    for name, figure in figures.items():
        what, bound = BARS[name]
        verdict = "" if bound is None else "reached" if figure.value >= bound else "MISSED"
        interval = f"{figure.low:.3f} to {figure.high:.3f}"
        table.add_row(what, f"{figure.value:.3f}", interval, str(figure.cases), f"{bound or ''}", verdict)
    (console or Console()).print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--split", choices=("val", "test"), default="test")
    arguments = parser.parse_args()
    show(measure(arguments.weights, arguments.count, arguments.split))
