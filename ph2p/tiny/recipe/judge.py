"""An independent judge of painted pictures: a small classifier that nothing is trained or chosen with.

CLIP was tuned on what the U-Net paints, so figures about painted pictures are not left to it.
"""

import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from ph2p.models.conv_tower import WIDTHS, pooled, stages
from ph2p.tiny.recipe.scenes import IMAGE_SIZE, to_unit
from ph2p.tiny.recipe.stage import Stage, whole
from ph2p.world import scenes as world
from ph2p.world.scenes import COLOURS, PLACES, Pictured, Scene, Thing

NOUNS, GROUNDS = tuple(world.NOUNS), tuple(COLOURS)
WHERE = (*PLACES, "one above the other", "side by side")
HEADS = {"noun": len(NOUNS), "colour": len(GROUNDS), "background": len(GROUNDS), "where": len(WHERE)}


class Judge(nn.Module):
    """Reads pictures (B, 3, 64, 64) in [-1, 1]: the nouns, the colours of shapes, the background, the places."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = stages(WIDTHS)
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTHS[-1], size) for name, size in HEADS.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return logits (B, classes) by head."""
        seen = pooled(self.stages(images))  # (B, 256)
        return {name: head(seen) for name, head in self.heads.items()}


class JudgeStage(Stage):
    """Train the judge on training scenes that are turned, and tinted, blurred and noisy in other ways than CLIP's.

    Half of them come in wrong colours, and there only nouns and places are read: a noun has few drawings in training,
    and without that their colours are learnt by heart.
    """

    name, batch_size, lr, weight_decay = "judge", 64, 2e-3, 0.05

    def __init__(
        self, seed: int, steps: int, scenes: list[Scene], pictures: np.ndarray, earlier: Judge | None = None
    ) -> None:
        super().__init__(seed, steps)
        self.pictures, self.model = pictures, earlier or Judge()
        self.truths = truths(scenes)

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        rows = rng.integers(len(self.pictures), size=self.batch_size)
        images = turned(to_unit(self.pictures[rows], self.device), generator, resize=0.22)
        true_colours = torch.rand(len(rows), generator=generator, device=self.device) < 0.5
        images = torch.where(true_colours[:, None, None, None], images, recoloured(images, generator))
        truth = {name: torch.from_numpy(values[rows]).to(self.device) for name, values in self.truths.items()}
        return reading_loss(self.model(disturbed(images, generator)), truth, true_colours.float())


def reading_loss(said: dict[str, Tensor], truth: dict[str, Tensor], true_colours: Tensor | None = None) -> Tensor:
    """Cross entropy of what is read off, logits (B, classes) by head; nouns weigh most, they are hardest to learn.

    Colours and backgrounds count in the rows of `true_colours` (B,) in {0, 1}, by default in all.
    """
    weight = torch.ones_like(said["where"][:, 0]) if true_colours is None else true_colours
    total = weight.new_zeros(())
    for name, factor in (("noun", 12), ("colour", 1.2), ("background", 0.25), ("where", 0.25)):
        logits = said[name].float()
        if truth[name].ndim > 1:
            losses = functional.binary_cross_entropy_with_logits(logits, truth[name], reduction="none").mean(1)
        else:
            losses = functional.cross_entropy(logits, truth[name], reduction="none")
        counted = weight if name in ("colour", "background") else torch.ones_like(weight)
        total = total + factor * (losses * counted).sum() / counted.sum().clamp(min=1)
    return total


def truths(scenes: list[Scene]) -> dict[str, np.ndarray]:
    """What is to be read off: nouns and colours (S, classes) in {0, 1}, background and where (S,)."""
    nouns, colours = (np.zeros((len(scenes), HEADS[name]), dtype=np.float32) for name in ("noun", "colour"))
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            nouns[row, NOUNS.index(noun_of(thing))] = 1
            if isinstance(thing, Thing):
                colours[row, GROUNDS.index(thing.colour)] = 1
    grounds = np.array([GROUNDS.index(scene.background) for scene in scenes])
    return {"noun": nouns, "colour": colours, "background": grounds, "where": np.array([where(s) for s in scenes])}


def noun_of(thing: Thing | Pictured) -> str:
    return thing.shape if isinstance(thing, Thing) else thing.noun


def where(scene: Scene) -> int:
    """The number in `WHERE` of a scene's place, or of the line on which its two objects stand."""
    if scene.place:
        return WHERE.index(scene.place)
    return len(PLACES) + (scene.relation not in ("above", "below"))


def turned(images: Tensor, generator: torch.Generator, resize: float) -> Tensor:
    """Turn (B, 3, H, W) by up to 20 degrees, shear, stretch, move by up to 4 pixels and scale by up to e**`resize`."""
    draw = torch.rand(len(images), 6, generator=generator, device=images.device) * 2 - 1
    angle, shear, move = draw[:, 0] * math.radians(20), draw[:, 1] * 0.15, draw[:, 2:4] * 0.12
    size, stretch = (draw[:, 4] * resize).exp(), (draw[:, 5] * 0.5 * resize).exp()
    cosine, sine = angle.cos() * size, angle.sin() * size
    rows = [
        torch.stack(row, 1)
        for row in ((cosine * stretch, shear - sine, move[:, 0]), (sine, cosine / stretch, move[:, 1]))
    ]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def recoloured(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mix the three colours of each picture (B, 3, H, W) at random and shift them, in [-1, 1]."""
    count, device = len(images), images.device
    mix = torch.eye(3, device=device) + 0.35 * torch.randn(count, 3, 3, generator=generator, device=device)
    shift = 0.25 * torch.randn(count, 3, 1, 1, generator=generator, device=device)
    return (torch.einsum("bij,bjhw->bihw", mix, images) + shift).clamp(-1, 1)


def disturbed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move (B, 3, H, W) by up to 2 pixels, change gain and tint by up to 8 %, make some coarse, add noise."""
    count, device = len(images), images.device
    draw = torch.rand(count, 8, generator=generator, device=device)
    padded = functional.pad(images, (2, 2, 2, 2), mode="replicate")
    y, x = (draw[:, :2] * 5).long().unbind(1)
    steps = torch.arange(IMAGE_SIZE, device=device)
    rows, columns = (y[:, None] + steps)[:, :, None], (x[:, None] + steps)[:, None, :]
    moved = padded.permute(0, 2, 3, 1)[torch.arange(count, device=device)[:, None, None], rows, columns]
    moved = moved.permute(0, 3, 1, 2)
    coarse = functional.interpolate(functional.avg_pool2d(moved, 2), scale_factor=2, mode="bilinear")
    moved = torch.lerp(moved, coarse, (draw[:, 2] * 1.5).clamp(max=1)[:, None, None, None])
    gain = 1 + 0.16 * (draw[:, 3:6] - 0.5)[:, :, None, None]
    noise = torch.randn(images.shape, generator=generator, device=device)
    return (moved * gain + 0.15 * draw[:, 6, None, None, None].square() * noise).clamp(-1.2, 1.2)


def save_judge(judge: Judge, weights: Path) -> None:
    """Write `judge/model.safetensors` in float16."""
    state = {name: value.half().contiguous() for name, value in judge.cpu().state_dict().items()}
    with whole(weights / "judge") as folder:
        save_file(state, folder / "model.safetensors")


def load_judge(weights: Path) -> Judge:
    judge = Judge()
    state = load_file(weights / "judge" / "model.safetensors")
    judge.load_state_dict({name: value.float() for name, value in state.items()})
    return judge.eval()
