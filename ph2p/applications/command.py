"""What `ph2p apply NAME` does: it reads the pictures, asks the application's function and shows what that gives."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ph2p.applications.attention import AttentionMaps, attention_maps, word_maps
from ph2p.applications.pictures import colour_name, data_uri, enlarged, heat, outlined
from ph2p.applications.request import Request
from ph2p.applications.settings import AttentionSettings
from ph2p.config.schema import Config
from ph2p.data import Target
from ph2p.data.images import read_image
from ph2p.evaluation.formatting import percent
from ph2p.files import as_json, expand, plain_disk_errors, printable, write_whole
from ph2p.models.generators import Generator
from ph2p.models.scorer import Scorer
from ph2p.report.page import escaping_template

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Models:
    """What `ph2p.load_inverter` loads: the models, and the configuration with seed, fit and guidance."""

    generator: Generator
    scorer: Scorer
    cfg: Config

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
    shown, settings = RUN[request.name](request.given, request.settings, models), asdict(request.settings)
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


def _attention(given: Sequence[str], settings: AttentionSettings, models: Models) -> Shown:
    path, prompt = given
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
    return Shown(page, {"prompt": prompt, "image": target.source, "words": words}, lines)


def _segmentation(target: Target, chosen: AttentionMaps, threshold: float) -> dict[str, Any]:
    """The picture with a line of its own colour around what belongs to each of the chosen words."""
    labels = chosen.labels(threshold)
    parts = [labels == number for number in range(len(chosen.words))]
    colours = [(word, colour_name(number)) for number, word in enumerate(chosen.words)]
    return {"picture": data_uri(outlined(target.image, parts)), "words": colours}


RUN: dict[str, Callable[[Sequence[str], Any, Models], Shown]] = {
    "attention": _attention,
}
