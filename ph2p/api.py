"""Prompt inversion from Python."""

import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from ph2p.config.compose import load_config
from ph2p.config.keywords import as_overrides
from ph2p.config.schema import Config
from ph2p.config.words import Word
from ph2p.data import Target, TargetError, together
from ph2p.data.images import TAKES, as_pillow, complaint, convert, read_image
from ph2p.data.sets import WEIGHT, require_weight
from ph2p.errors import UserError
from ph2p.evaluation.result import InversionResult
from ph2p.evaluation.score import TextScore, score_texts
from ph2p.files import expand, printable
from ph2p.inversion.session import Session
from ph2p.inverter import Inverter
from ph2p.run import build

ImageLike = str | Path | Image.Image | np.ndarray | Tensor
Result = InversionResult | TargetError
WITHOUT_EFFECT = ("data", "name", "output", "logger", "resume", "ckpt_path", "shard")  # keys of a command's run


@overload
def invert(
    images: ImageLike,
    overrides: Sequence[str] = ...,
    *,
    inverter: Inverter | None = ...,
    progress: bool = ...,
    **options: Any,
) -> InversionResult: ...
@overload
def invert(
    images: Iterable[ImageLike],
    overrides: Sequence[str] = ...,
    *,
    inverter: Inverter | None = ...,
    progress: bool = ...,
    **options: Any,
) -> list[Result]: ...
def invert(
    images: ImageLike | Iterable[ImageLike],
    overrides: Sequence[str] = (),
    *,
    inverter: Inverter | None = None,
    progress: bool = False,
    **options: Any,
) -> InversionResult | list[Result]:
    """Find the prompt of a picture, or of each of several: `invert("star.png", method="ph2p").prompt`.

    Pictures are paths, Pillow images, arrays (H, W, 3) or tensors (3, H, W), uint8 or in [0, 1]; they are read batch by
    batch. The model is set by `overrides` and `options` as in `load_inverter`, or is an `inverter` that this has
    loaded. A picture's prompt depends on neither its name nor its place nor the others. Nothing is written. Of several
    pictures, one that cannot be read or inverted has its TargetError in its place. `progress` shows a bar.
    Raises UserError for a wrong key or a thing that is no picture, and the TargetError of a single picture.
    """
    single = isinstance(images, ImageLike | bytes) or not isinstance(images, Iterable)
    some: list[ImageLike] = [images] if single else list(images)  # type: ignore[list-item, arg-type]
    for picture in some:
        _check(picture, single)
    _check_keys(inverter, overrides, options)
    if not some:
        return []
    with _quiet():
        inverter = inverter or load_inverter(overrides, **options)
        found = list(_invert(some, inverter, progress))
    if not single:
        return found
    if isinstance(found[0], TargetError):
        raise found[0]
    return found[0]


def invert_together(
    images: Sequence[ImageLike],
    negatives: Sequence[ImageLike] = (),
    weight: float = WEIGHT,
    overrides: Sequence[str] = (),
    *,
    inverter: Inverter | None = None,
    progress: bool = False,
    **options: Any,
) -> InversionResult:
    """Find one prompt for several pictures: `invert_together(["a.png", "b.png"]).prompt`.

    Its loss is the mean over the pictures, minus `weight`, in (0, 1], times the mean over the `negatives`, pictures
    that it is not to suit. Pictures, models and keys are given as in `invert`; the order of the pictures does not
    matter. Raises UserError for a wrong key, weight or picture, and for more pictures than there are draws; TargetError
    for a picture that cannot be read.
    """
    for some in (images, negatives):
        if isinstance(some, ImageLike):
            raise UserError(f"{type(some).__name__}: give a list of pictures")
        for picture in some:
            _check(picture, single=True)
    if not images:
        raise UserError("images: give at least one")
    require_weight("weight", weight)
    _check_keys(inverter, overrides, options)
    with _quiet():
        inverter = inverter or load_inverter(overrides, **options)
        targets = [_target(picture, number, inverter) for number, picture in enumerate([*images, *negatives])]
        for target in targets:
            if isinstance(target, TargetError):
                raise target
        good = [target for target in targets if isinstance(target, Target)]
        found = following(inverter, progress)([together(good[: len(images)], good[len(images) :], weight)])[0]
    if isinstance(found, TargetError):
        raise found
    return found


def following(inverter: Inverter, progress: bool = True) -> Callable[[Sequence[Target]], list[Result]]:
    """The inverter of a batch with a bar, if any, that shows what happens to it."""

    def invert_batch(targets: Sequence[Target]) -> list[Result]:
        with _quiet(), _bar(progress) as bar:
            task = bar.add_task("starting", total=len(targets))
            found = inverter(targets, _Follow(bar, task))
            bar.advance(task, len(targets))
            return found

    return invert_batch


def score(
    image: ImageLike,
    texts: str | Sequence[str],
    overrides: Sequence[str] = (),
    *,
    inverter: Inverter | None = None,
    **options: Any,
) -> list[TextScore]:
    """What texts are worth for a picture, typed by hand or found: `score("star.png", ["a red star", "a star"])`.

    Model and measurement are set as in `invert`. Raises UserError for a wrong key, no text or a thing that is no
    picture, and TargetError for a picture that cannot be read.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
        raise UserError("texts: give at least one")
    _check(image, single=True)
    _check_keys(inverter, overrides, options)
    with _quiet():
        inverter = inverter or _load(overrides, **options)
        target = _target(image, 0, inverter)
        if isinstance(target, TargetError):
            raise target
        how, seed = inverter.cfg.evaluation, inverter.cfg.seed
        return score_texts(inverter.generator, inverter.scorer, target, texts, how, seed)


def load_inverter(overrides: Sequence[str] | Config = (), **options: Any) -> Inverter:
    """Load the model once for many calls: `load_inverter(generator="sd15", method="ph2p", device="cuda", budget=4000)`.

    The keywords are those of `ph2p.config.keywords.as_overrides`: options of the groups, a path or hub id as
    `generator` or `scorer`, `device`, any key of the method, `evaluation`, `batch_size`, `seed`, `fit`. `overrides` are
    words of the command line, such as `["method=ph2p", "generator.steps=20"]`, or a whole `load_config(...)`.
    Raises UserError, one line, for anything wrong in them and for a model that cannot be loaded; warns where
    `method.fluency` has no language model.
    """
    inverter = _load(overrides, **options)
    if advice := inverter.cfg.method.advice:
        warnings.warn(advice, stacklevel=2)
    return inverter


def _load(overrides: Sequence[str] | Config, **options: Any) -> Inverter:
    if isinstance(overrides, str):
        raise UserError(f"{overrides}: give a list of keys, as in [{overrides!r}]")
    words = as_overrides(**options)
    if not isinstance(overrides, Sequence):
        if words:
            raise UserError(f"{words[0]}: give it to load_config, which has made the configuration")
        cfg = overrides
    else:
        for word in map(Word.of, overrides):
            if word.key != "data.fit" and word.key.partition(".")[0] in WITHOUT_EFFECT:
                raise UserError(f"{word}: has no effect here: pictures are given to invert, and nothing is written")
        cfg = load_config([*overrides, *words])
    devices = cfg.trainer.get("devices", 1)
    if (len(devices) if isinstance(devices, list) else int(devices)) != 1 or cfg.trainer.get("num_nodes", 1) != 1:
        raise UserError("trainer.devices: Python works in its own process alone; leave it at 1, and num_nodes too")
    with _quiet():
        return build.load_inverter(cfg)


class _Follow(Session):
    """Shows on a bar what happens to the pictures of a batch."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        super().__init__()
        self.bar, self.task = bar, task

    def report(self, stage: str, done: int, total: int) -> None:
        self.bar.update(self.task, description=f"{stage} {done}/{total}")


def _bar(progress: bool) -> Progress:
    columns = TextColumn("{task.description:>24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, disable=not progress)


def _invert(pictures: Sequence[ImageLike], inverter: Inverter, progress: bool) -> Iterator[Result]:
    """The results in order, batch after batch."""
    size = inverter.cfg.batch_size
    with _bar(progress) as bar:
        task = bar.add_task("starting", total=len(pictures))
        for start in range(0, len(pictures), size):
            numbered = enumerate(pictures[start : start + size], start)
            batch = [_target(picture, number, inverter) for number, picture in numbered]
            good = [target for target in batch if isinstance(target, Target)]
            found = iter(inverter(good, _Follow(bar, task)) if good else [])
            yield from (next(found) if isinstance(target, Target) else target for target in batch)
            bar.advance(task, len(batch))


def _check_keys(inverter: Inverter | None, overrides: Sequence[str], options: dict[str, Any]) -> None:
    """Refuse keys that would have no effect."""
    if inverter and (overrides or options):
        given = [*overrides, *options]
        raise UserError(f"{given[0]}: an inverter keeps the keys that it was loaded with; give them to load_inverter")


def _check(picture: object, single: bool) -> None:
    """Refuse, before anything is loaded, what is no picture."""
    if isinstance(picture, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:(//|.*;base64,)", picture):
        raise UserError(f"{printable(picture[:60])}: is an address, and nothing is downloaded; give a file")
    if isinstance(picture, bytes | bytearray):
        raise UserError("bytes are no picture; open them first: Image.open(io.BytesIO(content))")
    if not isinstance(picture, ImageLike):
        raise UserError(f"{type(picture).__name__}: no picture; {TAKES}")
    if isinstance(picture, str | Path):
        place = expand(picture)
        if not str(picture).strip() or place.is_dir():
            raise UserError(
                f"{printable(picture)}: is a folder; give its files, or use the command: ph2p data=folder data.path=..."
            )
        if single and not place.exists():
            raise TargetError(f"{printable(picture)}: does not exist: check the path")


def _target(picture: ImageLike, number: int, inverter: Inverter) -> Target | TargetError:
    """The picture as the inverter takes it, or what is wrong with it."""
    size, fit, name = inverter.generator.image_size, inverter.cfg.data.get("fit", "crop"), f"image-{number}"
    try:
        if isinstance(picture, str | Path):
            place = expand(picture)
            read = read_image(place, printable(picture), size, fit)
            return Target(printable(place.name), printable(picture), read.image, notes=read.notes)
        read = convert(picture if isinstance(picture, Image.Image) else as_pillow(picture), size, fit)
        return Target(name, "memory", read.image, notes=read.notes)
    except TargetError as error:
        return error
    except UserError as error:
        return TargetError(f"{name}: {error}")
    except Exception as error:  # Pillow decodes late, and raises nearly anything on broken bytes
        return TargetError(f"{name}: {complaint(None, error)}")


@contextmanager
def _quiet() -> Iterator[None]:
    """What libraries say at every fit stays off the screen; afterwards filters and levels are as they were."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    with warnings.catch_warnings():
        build.quiet_libraries()
        try:
            yield
        finally:
            logger.setLevel(level)
