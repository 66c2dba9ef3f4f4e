"""What `ph2p apply NAME` does: it reads the pictures, asks the application's function and shows what that gives."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ph2p.applications.attention import AttentionMaps, attention_maps, word_maps
from ph2p.applications.distillation import distil, shortest
from ph2p.applications.evolution import Family, Individual, clip_fitness, denoising_fitness, evolve
from ph2p.applications.pictures import colour_name, data_uri, enlarged, heat, outlined
from ph2p.applications.removal import Renderings, remove
from ph2p.applications.request import Request
from ph2p.applications.settings import (
    AttentionSettings,
    DistillationSettings,
    EvolutionSettings,
    RemovalSettings,
    StyleSettings,
)
from ph2p.applications.style import Invert, find_style
from ph2p.config.schema import Config
from ph2p.data import Target
from ph2p.data.images import read_image
from ph2p.evaluation.formatting import decimal, finite, loss, percent, visible
from ph2p.evaluation.score import TextScore
from ph2p.files import as_json, expand, plain_disk_errors, printable, write_whole
from ph2p.models.generators import Generator
from ph2p.models.painting import guidance_options, paint
from ph2p.models.scorer import Scorer
from ph2p.report.page import escaping_template

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Models:
    """What `ph2p.load_inverter` loads: the models, the configuration with seed, fit and guidance, and what inverts."""

    generator: Generator
    scorer: Scorer
    cfg: Config
    invert: Invert

    def read(self, path: str) -> Target:
        """A picture as the generator takes it; raises TargetError."""
        size, fit, place = self.generator.image_size, self.cfg.data.get("fit", "crop"), expand(path)
        read = read_image(place, printable(path), size, fit)
        return Target(printable(place.name), printable(path), read.image, notes=read.notes)


@dataclass(frozen=True)
class Shown:
    """What an application gives to see: its page's values, its record for other programs, lines for the terminal."""

    page: dict[str, Any]
    record: dict[str, Any]
    lines: list[str]


def apply(request: Request, models: Models) -> Shown:
    """Do what was asked for; raises UserError for what does not fit."""
    shown, settings = RUN[request.name](request, request.settings, models), asdict(request.settings)
    facts = {"seed": models.cfg.seed, "generator": models.cfg.generator.name} | settings
    record = shown.record | {"seed": models.cfg.seed, "settings": settings}
    return Shown(shown.page | {"facts": list(facts.items())}, record, shown.lines)


def write(request: Request, shown: Shown) -> tuple[Path, Path]:
    """Write the page, and beside it the record as JSON; raises UserError where they cannot be written."""
    html = escaping_template(TEMPLATES, f"{request.name}.html.j2").render(**shown.page)
    page, record = request.output, request.output.with_suffix(".json")
    with plain_disk_errors(page):
        page.parent.mkdir(parents=True, exist_ok=True)
        write_whole(page, html.encode("utf-8", "backslashreplace"))
        write_whole(record, as_json(shown.record, indent=1))
    return page, record


def _attention(request: Request, settings: AttentionSettings, models: Models) -> Shown:
    path, prompt = request.given
    target = models.read(path)
    found = attention_maps(models.generator, target, prompt, settings, models.cfg.seed)
    masks = found.masks(settings.threshold)
    shares = masks.float().mean((1, 2)).tolist()
    relative = found.relative()
    tokens = [
        {
            "word": word,
            "share": percent(share),
            "picture": data_uri(outlined(heat(target.image, values), mask[None])),
        }
        for word, share, values, mask in zip(found.words, shares, relative, masks, strict=True)
    ]
    chosen = word_maps(found, models.generator.vocabulary, settings.words) if settings.words else None
    page = {
        "prompt": prompt,
        "image_id": target.image_id,
        "picture": data_uri(enlarged(target.image)),
        "threshold": settings.threshold,
        "segmentation": _segmentation(target, chosen, settings.threshold) if chosen else None,
        "tokens": tokens,
    }
    words = [{"word": word, "share": share} for word, share in zip(found.words, shares, strict=True)]
    lines = [f"{percent(share):>4}  {word}" for word, share in zip(found.words, shares, strict=True)]
    return Shown(page, {"prompt": prompt, "image": target.source, "words": words}, [visible(line) for line in lines])


def _segmentation(target: Target, chosen: AttentionMaps, threshold: float) -> dict[str, Any]:
    """The picture with a line of its own colour around what belongs to each of the chosen words."""
    labels = chosen.labels(threshold)
    parts = [labels == number for number in range(len(chosen.words))]
    colours = [(word, colour_name(number)) for number, word in enumerate(chosen.words)]
    return {"picture": data_uri(outlined(target.image, parts)), "words": colours}


def _distillation(request: Request, settings: DistillationSettings, models: Models) -> Shown:
    path, prompt = request.given
    target = models.read(path)
    steps = distil(models.generator, target, prompt, settings, models.cfg.seed)
    short = shortest(steps, settings.keep)
    rows = [
        {
            "words": len(step.words),
            "removed": step.removed,
            "text": step.text,
            "loss": loss(step.loss),
            "gap": percent(finite(step.gap_closed)),
            "chosen": step is short,
        }
        for step in steps
    ]
    page = {
        "prompt": prompt,
        "short": short.text,
        "keep": percent(settings.keep),
        "image_id": target.image_id,
        "picture": data_uri(enlarged(target.image)),
        "chart": _curve([(len(step.words), step.loss) for step in reversed(steps)]),
        "steps": rows,
    }
    record = {"prompt": prompt, "image": target.source, "short": short.text, "steps": [asdict(step) for step in steps]}
    lines = [f"{'*' if row['chosen'] else ' '} loss {row['loss']}  {row['gap']:>4}  {row['text']}" for row in rows]
    return Shown(page, record, [visible(line) for line in lines])


def _curve(points: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """A line through (number of words, loss), fewest words first, as places of an SVG."""
    width, height, left, top, floor = 640, 240, 60, 12, 210
    low, high = min(value for _, value in points), max(value for _, value in points)
    span, step = (high - low) or 1.0, (width - left - 20) / max(1, len(points) - 1)

    def y(value: float) -> float:
        return round(top + (high - value) / span * (floor - top), 1)

    places = [(round(left + 10 + k * step, 1), y(value), words) for k, (words, value) in enumerate(points)]
    ticks = [(y(low + part * span), loss(low + part * span)) for part in (0, 0.5, 1)]
    return {"width": width, "height": height, "left": left, "points": places, "ticks": ticks}


def _removal(request: Request, settings: RemovalSettings, models: Models) -> Shown:
    prompt, negative = request.given
    found = remove(models.generator, models.scorer, models.cfg.generator, (prompt, negative), settings, models.cfg.seed)
    parts = {"without": found.before, "with": found.after}
    rates = {name: part.rate(found.concept) for name, part in parts.items()}
    shown = {name: [percent(value) for value in rate] for name, rate in rates.items()}
    page = {
        "prompt": prompt,
        "negative": negative,
        "concept": found.concept,
        "rates": [{"name": name, "rate": rate, "low": low, "high": high} for name, (rate, low, high) in shown.items()],
        "parts": [{"name": f"{name} the negative prompt", "pictures": _seen(part)} for name, part in parts.items()],
    }
    change = found.change()
    record = {"prompt": prompt, "negative": negative, "concept": found.concept, "rates": rates, "change": change}
    lines = [f"{name:>7}: {found.concept} in {rate} [{low}, {high}]" for name, (rate, low, high) in shown.items()]
    lines.append(" change: {:+.0%} [{:+.0%}, {:+.0%}]".format(*change))
    seen = {name: list(part.seen) for name, part in parts.items()}
    return Shown(page, record | {"seen": seen}, [visible(line) for line in lines])


def _seen(part: Renderings) -> list[dict[str, str]]:
    pairs = zip(part.pictures, part.seen, strict=True)
    return [{"picture": data_uri(enlarged(picture)), "seen": seen} for picture, seen in pairs]


def _evolution(request: Request, settings: EvolutionSettings, models: Models) -> Shown:
    targets, prompts = [models.read(path) for path in request.given[::2]], request.given[1::2]
    generator, painting, seed = models.generator, models.cfg.generator, models.cfg.seed
    if settings.by == "clip":
        fitness = clip_fitness(generator, models.scorer, painting, targets, seed)
    else:
        fitness = denoising_fitness(generator, targets, settings, seed)
    family = evolve(generator.vocabulary, prompts, fitness, settings, seed)
    line = sorted(family.ancestors(family.best.number))
    texts = [*prompts, family.best.text]
    renderings = paint(generator, texts, [seed + 1000] * len(texts), painting.steps, guidance_options(painting)).cpu()
    page = {
        "best": family.best.text,
        "by": settings.by,
        "founders": [
            {"picture": data_uri(enlarged(target.image)), "text": text, "rendering": data_uri(enlarged(rendering))}
            for target, text, rendering in zip(targets, prompts, renderings, strict=False)
        ],
        "rendering": data_uri(enlarged(renderings[-1])),
        "tree": _tree(family, set(line)),
        "line": [_member(family.members[number]) for number in reversed(line)],
    }
    record = {"images": [target.source for target in targets], "prompts": list(prompts), "best": family.best.text}
    members = [asdict(one) | {"fitness": one.fitness} for one in family.members]
    bests = [family.members[living[0]] for living in family.generations]
    lines = [f"generation {k}: {decimal(one.fitness)}  {one.text}" for k, one in enumerate(bests)]
    return Shown(page, record | {"members": members, "generations": family.generations}, [visible(x) for x in lines])


def _member(one: Individual) -> dict[str, Any]:
    suits, parents = ", ".join(map(decimal, one.suits)), " and ".join(map(str, one.parents))
    return {"number": one.number, "born": one.born, "parents": parents, "text": one.text, "suits": suits}


def _tree(family: Family, line: set[int]) -> dict[str, Any]:
    """The family as places of an SVG: a row for each generation, in which those stand who were born in it."""
    width, step = 960, 64
    rows = [[one for one in family.members if one.born == generation] for generation in range(len(family.generations))]
    places = {
        one.number: (round(width * (k + 1) / (len(row) + 1), 1), 24 + step * one.born)
        for row in rows
        for k, one in enumerate(row)
    }
    nodes = [(*places[one.number], one.number, one.text, one.number in line) for one in family.members]
    links = [
        (*places[parent], *places[one.number], one.number in line) for one in family.members for parent in one.parents
    ]
    return {
        "width": width,
        "height": 48 + step * (len(rows) - 1),
        "nodes": nodes,
        "links": sorted(links, key=lambda link: link[-1]),
    }


def _style(request: Request, settings: StyleSettings, models: Models) -> Shown:
    pictures, negatives = ([models.read(path) for path in paths] for paths in (request.given, request.negative))
    what = models.invert, models.generator, models.scorer, models.cfg
    found = find_style(*what, pictures, negatives, settings.weight)
    result, record = found.result, {"prompt": found.result.prompt, "alternatives": found.result.alternatives}
    page: dict[str, Any] = {"prompt": result.prompt}
    lines = [f"loss {loss(result.loss)}  {percent(finite(result.gap_closed)):>4}  {result.prompt}"]
    for name, targets, scores in (("pictures", pictures, found.pictures), ("negatives", negatives, found.negatives)):
        page[name] = [_worth(*pair) for pair in zip(targets, scores, strict=True)]
        record[name] = [
            {"image": one.source, "loss": score.loss, "loss_empty": score.loss_empty, "gap_closed": score.gap_closed}
            for one, score in zip(targets, scores, strict=True)
        ]
        lines += [f"{name}: loss {row['loss']}  {row['gap']:>4}  {row['name']}" for row in page[name]]
    page["renderings"] = [
        data_uri(enlarged(one)) for one in (result.renderings if result.renderings is not None else [])
    ]
    page["alternatives"] = [row | {"loss": loss(row["loss"])} for row in result.alternatives]
    lines += [f"or: loss {row['loss']}  {row['prompt']}" for row in page["alternatives"]]
    lines += [f"warning: {text}" for text in result.warnings]
    return Shown(page | {"warnings": result.warnings}, record, [visible(line) for line in lines])


def _worth(target: Target, score: TextScore) -> dict[str, str]:
    """A picture of a set with what the set's prompt is worth for it."""
    values = {"loss": loss(score.loss), "empty": loss(score.loss_empty), "gap": percent(finite(score.gap_closed))}
    return {"name": target.image_id, "picture": data_uri(enlarged(target.image))} | values


RUN: dict[str, Callable[[Request, Any, Models], Shown]] = {
    "attention": _attention,
    "distillation": _distillation,
    "removal": _removal,
    "evolution": _evolution,
    "style": _style,
}
