"""Measure the applications on the embedded world, whose truth is known: the figures of docs/applications.md.

python benchmarks/applications.py attention --scenes 20        # or distillation, removal, evolution, style
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from statistics import mean

import torch
from torch import Tensor

from ph2p import Target, load_inverter
from ph2p.applications.attention import attention_maps, intersection_over_union, word_maps
from ph2p.applications.distillation import Step, distil, shortest
from ph2p.applications.evolution import denoising_fitness, evolve
from ph2p.applications.removal import Removal, remove, zero_shot
from ph2p.applications.settings import AttentionSettings, DistillationSettings, EvolutionSettings, RemovalSettings
from ph2p.data import together
from ph2p.evaluation.intervals import confidence_interval
from ph2p.evaluation.score import score_texts
from ph2p.inverter import Inverter
from ph2p.models.painting import guidance_options, paint
from ph2p.world.captions import attribute_words, attributes, canonical_caption
from ph2p.world.drawing import object_mask, render
from ph2p.world.scenes import COLOURS, SHAPES, Scene, scene

STYLE = (
    "part of the sets whose prompt names what they share",
    "words of the prompt that name something of one picture alone",
    "loss of the set's prompt, mean over its pictures",
    "loss of each picture's own true caption",
    "loss of the true captions of the other two",
    "loss without words",
)
DISCS = (10, 15, 20, 25)  # radii in pixels of a 64-pixel picture


def interval(values: Sequence[float]) -> str:
    low, high = confidence_interval(values)
    return f"{mean(values):.3f} [{low:.3f}, {high:.3f}]"


def some_scenes(split: str, count: int, objects: int | None = None) -> list[Scene]:
    return [scene(split, index, objects=objects) for index in range(count)]


def as_target(one: Scene) -> Target:
    picture = torch.from_numpy(render(one).copy()).permute(2, 0, 1) / 255
    return Target("scene", "world", picture, canonical_caption(one))


def disc(radius: float, size: int = 64) -> Tensor:
    """A disc in the middle of a picture: a mask (size, size) that knows nothing of it."""
    place = torch.arange(size) - (size - 1) / 2
    return place[:, None] ** 2 + place[None] ** 2 < radius**2


def attention_scores(
    inverter: Inverter, scenes: Iterable[Scene], settings: AttentionSettings
) -> dict[str, list[float]]:
    """Intersection over union with every object's true mask: of its noun's mask, and of masks that know nothing."""
    scores: dict[str, list[float]] = {}
    for one in scenes:
        nouns = [attributes(thing)[-1][0] for thing in one.things]
        target = as_target(one)
        maps = attention_maps(inverter.generator, target, canonical_caption(one), settings, inverter.cfg.seed)
        chosen = word_maps(maps, inverter.generator.vocabulary, nouns)
        masks, labels = chosen.masks(settings.threshold), chosen.labels(settings.threshold)
        for number, thing in enumerate(one.things):
            truth = torch.from_numpy(object_mask(thing) > 0.5)
            found = {"the noun's mask": masks[number], "told apart (labels)": labels == number}
            found |= {f"disc of radius {radius}": disc(radius) for radius in DISCS}
            found |= {"the whole picture": torch.ones_like(truth)}
            for name, mask in found.items():
                scores.setdefault(name, []).append(intersection_over_union(mask, truth))
    return scores


def attention(count: int) -> None:
    scores = attention_scores(load_inverter(), some_scenes("test", count), AttentionSettings())
    for name, values in scores.items():
        print(f"{interval(values)}  {name}, {len(values)} objects")


def distillation_of(inverter: Inverter, one: Scene, settings: DistillationSettings) -> tuple[list[Step], set[str]]:
    """The steps of a true caption that begins and ends with a wrong word, and these words: a noun and a colour."""
    caption = canonical_caption(one).split()
    true = {word for group in attribute_words(one) for word in group}
    noun, colour = (next(word for word in words if word not in true) for words in (SHAPES, COLOURS))
    prompt = " ".join([noun, *caption, colour])
    return distil(inverter.generator, as_target(one), prompt, settings, inverter.cfg.seed), {noun, colour}


def distillation(count: int) -> None:
    inverter, settings = load_inverter(), DistillationSettings()
    first, parts, gaps = [], [], []
    for one in some_scenes("test", count, objects=1):
        steps, wrong = distillation_of(inverter, one, settings)
        short, true = shortest(steps, settings.keep), steps[2]
        first.append(float({steps[1].removed, steps[2].removed} == wrong))
        parts.append(len(short.words) / len(steps[0].words))
        gaps.append(short.gap_closed / true.gap_closed)
        print(f"{steps[0].text}\n  -> {short.text}  ({', '.join(step.removed for step in steps[1:])})", flush=True)
    print(f"{interval(first)}  both wrong words go first, {count} scenes")
    print(f"{interval(parts)}  part of the words that is left; gap closed, as a part of the caption's {interval(gaps)}")


def background_removals(inverter: Inverter, count: int, most: int) -> Iterator[Removal]:
    """Removals of the backgrounds that renderings of a prompt without one have most often, as other seeds tell."""
    generator, scorer, painting = inverter.generator, inverter.scorer, inverter.cfg.generator
    prompt, template, colours = "a large red square", "a {} background", list(COLOURS)
    seeds = list(range(10_000, 10_000 + count))
    pictures = paint(generator, [prompt] * count, seeds, painting.steps, guidance_options(painting))
    for colour, _ in Counter(zero_shot(scorer, pictures, colours, template)).most_common(most):
        others = [other for other in colours if other != colour]
        settings, texts = RemovalSettings(count, colour, others, template), (prompt, f"{colour} background")
        yield remove(generator, scorer, painting, texts, settings, inverter.cfg.seed)


def removal(count: int) -> None:
    for found in background_removals(load_inverter(["generator.steps=10"]), count, 3):
        rates = ["{:.2f} [{:.2f}, {:.2f}]".format(*part.rate(found.concept)) for part in (found.before, found.after)]
        change = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*found.change())
        print(f"{found.concept}: {rates[0]} -> {rates[1]}, change {change}", flush=True)


def evolution(count: int) -> None:
    """Pairs of one-object scenes and their true captions: the fittest child and its parents, on draws of their own."""
    inverter, settings, gains = load_inverter(), EvolutionSettings(), []
    generator, seed, scenes = inverter.generator, inverter.cfg.seed, some_scenes("test", 2 * count, objects=1)
    for pair in zip(scenes[::2], scenes[1::2], strict=True):
        targets, captions = [as_target(one) for one in pair], [canonical_caption(one) for one in pair]
        chosen_by = denoising_fitness(generator, targets, settings, seed)
        family = evolve(generator.vocabulary, captions, chosen_by, settings, seed)
        some = [*family.members[:2], family.best]
        anew = denoising_fitness(generator, targets, replace(settings, draws=64), seed + 1)
        parents, child = anew([one.token_ids for one in some]).split([2, 1])
        gains.append(float(child.min() - parents.amin(1).max()))
        print(*captions, f"-> {family.best.text}", parents.tolist(), child.tolist(), sep="\n  ", flush=True)
    print(f"{interval(gains)}  gain of the part of the loss that is taken away, of the worse picture, {count} pairs")


def sets_of_scenes(split: str, count: int) -> list[tuple[list[Scene], frozenset[str]]]:
    """Sets of three one-object scenes that share their noun or, every second one, their background, each with the words
    for what they share; the other one is different in all three."""
    nouns: dict[str, list[Scene]] = {}
    grounds: dict[str, list[Scene]] = {}
    for one in some_scenes(split, 600, objects=1):
        noun, ground = noun_of(one), one.background
        if ground not in [other.background for other in nouns.setdefault(noun, [])]:
            nouns[noun].append(one)
        if noun not in map(noun_of, grounds.setdefault(ground, [])):
            grounds[ground].append(one)
    by_noun = [(some[:3], attribute_words(some[0])[-3]) for some in nouns.values() if len(some) > 2]
    by_ground = [(some[:3], attribute_words(some[0])[-1]) for some in grounds.values() if len(some) > 2]
    return [pair for both in zip(by_noun, by_ground, strict=False) for pair in both][:count]


def noun_of(one: Scene) -> str:
    return attributes(one.things[0])[-1][0]


def style(count: int) -> None:
    """One prompt for three scenes, found by the method `fast`, beside their true captions and the words they share."""
    inverter, rows = load_inverter(["method=fast", "evaluation.renders=1", "evaluation.draws=48"]), []
    for scenes, shared in sets_of_scenes("val", count):
        targets, captions = [as_target(one) for one in scenes], list(map(canonical_caption, scenes))
        (found,) = inverter([together(targets)])
        words = found.prompt.split()
        others = {word for one in scenes for words in attribute_words(one) for word in words} - shared
        texts, how = [found.prompt, *captions], (inverter.cfg.evaluation, inverter.cfg.seed)
        scores = [score_texts(inverter.generator, inverter.scorer, target, texts, *how) for target in targets]
        own = mean(row[1 + k].loss for k, row in enumerate(scores))
        foreign = mean(score.loss for k, row in enumerate(scores) for n, score in enumerate(row) if n not in (0, 1 + k))
        told, empty = mean(row[0].loss for row in scores), mean(row[0].loss_empty for row in scores)
        found_shared, strange = float(bool(shared & set(words))), sum(word in others for word in words)
        rows.append((found_shared, strange, told, own, foreign, empty))
        print(f"{'/'.join(sorted(shared))}: {found.prompt}  {rows[-1]}", flush=True)
    for name, values in zip(STYLE, zip(*rows, strict=True), strict=True):
        print(f"{interval(values)}  {name}, {len(rows)} sets")


MEASURES: dict[str, Callable[[int], None]] = {
    "attention": attention,
    "distillation": distillation,
    "removal": removal,
    "evolution": evolution,
    "style": style,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=MEASURES)
    parser.add_argument("--scenes", type=int, default=20, help="scenes, renderings or pairs")
    arguments = parser.parse_args()
    MEASURES[arguments.name](arguments.scenes)


if __name__ == "__main__":
    main()
