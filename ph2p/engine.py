"""A run from configuration to results folder: load, invert batch after batch, write, report."""

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ph2p.config import load_config
from ph2p.data import Target, TargetError, Targets, from_pil, load_image
from ph2p.errors import UserError
from ph2p.generators import LOADING, load_generator
from ph2p.inverter import Inversion, Inverter, as_record
from ph2p.report import read_results, summary_table, write_report
from ph2p.results import ResultsFolder
from ph2p.scorer import load_scorer
from ph2p.tokens import TokenFilter, read_words

console = Console()


def quiet_libraries() -> None:
    """Keep what Lightning says at every fit off the screen: an image batch is a fit, and there may be thousands."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (".*LeafSpec.*is deprecated", ".*is in eval mode.*", ".*logger.*", ".*srun.*"):
        warnings.filterwarnings("ignore", message=message)


def run(cfg: DictConfig) -> int:
    """Invert all images of the configuration; returns the exit code: 1 if an image failed, else 0.

    Images that an earlier run of the same configuration finished are skipped. Raises UserError for what stops
    the whole run; what was finished until then stays.
    """
    inverter = load_inverter(cfg)
    targets = _build("data", lambda: instantiate(cfg.data.targets, image_size=inverter.generator.image_size))
    results = ResultsFolder(Path(cfg.output) / cfg.name, cfg)
    done = {record["image_id"] for record in read_results(results.folder) if record["status"] == "ok"}
    todo = [index for index, image_id in enumerate(targets.ids) if image_id not in done]
    before = f" ({len(targets) - len(todo)} finished before)" if len(todo) < len(targets) else ""
    console.print(f"Inverting {len(targets)} images{before} with {cfg.method.name}; results in {results.folder}/")
    with _progress_bar() as bar:
        task = bar.add_task("starting", total=len(todo))
        for start in range(0, len(todo), cfg.data.batch_size):
            _run_batch(inverter, targets, todo[start : start + cfg.data.batch_size], results, bar, task)
    return _summarise(results.folder, set(targets.ids))


def load_inverter(cfg: DictConfig) -> Inverter:
    """Load generator and scorer onto the trainer's device; raises UserError for what cannot be built or read."""
    quiet_libraries()
    _check_parts(cfg)
    generator = cfg.generator
    accelerator = cfg.trainer.get("accelerator", "auto")
    if accelerator == "auto" and torch.cuda.is_available():
        accelerator = "cuda"
    device = "cuda" if accelerator in ("gpu", "cuda") else "cpu"
    words = _words(generator)
    options = {key: generator[key] for key in LOADING} | {"dtype": getattr(torch, generator.dtype)}
    loaded = load_generator(generator.path, device=device, **options, **words)
    loaded.check_guidance(generator.guidance_rescale)
    key, length = "prompt_length", cfg.method.prompt_length
    if cfg.method.init != "random":
        key, length = "init", len(loaded.vocabulary.encode(cfg.method.init))
    if length > loaded.max_prompt_length:
        raise UserError(
            f"method.{key}={cfg.method[key]}: {length} tokens, but this model reads at most "
            f"{loaded.max_prompt_length}; use fewer"
        )
    for key in ("method", "evaluation"):
        if cfg[key].timesteps[1] > loaded.num_timesteps:
            raise UserError(f"{key}.timesteps={cfg[key].timesteps}: this model has {loaded.num_timesteps} timesteps")
    for key, steps in {"generator": generator.steps, "method.selection": cfg.method.selection.steps}.items():
        if steps > loaded.num_timesteps:
            raise UserError(f"{key}.steps={steps}: this model has {loaded.num_timesteps} timesteps")
    hub = {key: cfg.scorer[key] for key in ("revision", "cache_dir", "local_files_only")}
    return Inverter(loaded, load_scorer(cfg.scorer.path, device=device, **hub), cfg)


def _words(generator: DictConfig) -> dict[str, Any]:
    """The arguments of `Vocabulary` that the configuration gives, word lists read from their files."""
    tokens = generator.tokens
    files = {
        "generator.blocklist": generator.blocklist,
        "generator.allowlist": generator.allowlist,
        "generator.tokens.frequent": tokens.frequent,
    }
    blocked, allowed, frequent = (read_words(file) if file else None for file in files.values())
    for (key, file), words in zip(files.items(), (blocked, allowed, frequent), strict=True):
        if words == [] and key != "generator.blocklist":
            raise UserError(f"{key}={file}: names no word; list one a line")
    rule = TokenFilter(
        scripts=tuple(tokens.scripts),
        min_length=tokens.min_length,
        max_length=tokens.max_length,
        frequent=frequent,
        protected=tokens.protected,
    )
    return {"blocklist": blocked, "allowlist": allowed, "tokens": rule}


def _check_parts(cfg: DictConfig) -> None:
    """Build optimiser, trainer and logger once: what is wrong in their keys stops a run before it begins."""
    if cfg.method.optimizer:
        dummy = torch.nn.Parameter(torch.zeros(1, 1))
        _build("method.optimizer", lambda: instantiate(cfg.method.optimizer, _partial_=True)([dummy]))
    _build("trainer", lambda: L.Trainer(**OmegaConf.to_container(cfg.trainer), logger=False))
    if cfg.logger:
        _build("logger", lambda: instantiate(cfg.logger))


def _build(key: str, make: Callable[[], Any]) -> Any:
    """Make what a part of the configuration describes; raises UserError, one line that names the part."""
    try:
        return make()
    except Exception as error:  # constructors raise anything, and Hydra wraps it once more
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from error
        raise UserError(f"{key}: {' '.join(str(cause).split())}") from error


def _run_batch(
    inverter: Inverter, targets: Targets, indices: Sequence[int], results: ResultsFolder, bar: Progress, task: TaskID
) -> None:
    """Load, invert and write one batch; an image that cannot be read fails alone."""
    finished = bar.tasks[task].completed
    batch: list[Target] = []
    for index in indices:
        try:
            batch.append(targets.load(index))
        except TargetError as error:
            bar.console.print(f"[red]failed[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
            results.append({"image_id": targets.ids[index], "source": "", "status": "failed", "error": str(error)})

    def report(share: float, what: str) -> None:
        doing = f"{what} {len(batch)} image{'s' if len(batch) > 1 else ''}"
        bar.update(task, completed=finished + share * len(indices), description=doing)

    if batch:
        for result in inverter(batch, report):
            write(result, results)
    bar.update(task, completed=finished + len(indices))


def write(result: Inversion, results: ResultsFolder) -> None:
    """Write an image's pictures and candidates, and then its record."""
    image_id = result.image_id
    files: dict[str, Any] = {"target": results.write_picture(image_id, "target", result.target)}
    for key, name, pictures in (
        ("samples", "sample", result.pictures),
        ("caption_samples", "caption", result.caption_pictures),
    ):
        if pictures is not None:
            files[key] = [results.write_picture(image_id, f"{name}-{k}", p) for k, p in enumerate(pictures)]
    candidates = [
        {
            "prompt": c.text,
            "token_ids": list(c.token_ids),
            "loss": c.loss,
            "clip_similarity": c.clip_similarity,
            "epoch": c.epoch,
        }
        for c in result.candidates
    ]
    content = {"loss_curve": result.loss_curve, "candidates": candidates}
    files["candidates"] = results.write_candidates(image_id, content)
    results.append(as_record(result) | {"files": files})


def _progress_bar() -> Progress:
    columns = (
        TextColumn("{task.description:>24}"),
        BarColumn(),
        TextColumn("{task.completed:.1f}/{task.total} images"),
    )
    return Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console)


def _summarise(folder: Path, wanted: set[str]) -> int:
    records = [record for record in read_results(folder) if record["image_id"] in wanted]
    console.print(summary_table(records))
    page = write_report(folder)
    failed = sum(record["status"] != "ok" for record in records)
    console.print(f"{len(records) - failed} images inverted, {failed} failed. Open {page.resolve()}", soft_wrap=True)
    return 1 if failed else 0


# --- Python ------------------------------------------------------------------------------------------------------

Picture = str | Path | Image.Image


def invert(
    images: Picture | Sequence[Picture], overrides: Sequence[str] = (), inverter: Inverter | None = None
) -> Inversion | list[Inversion]:
    """Find the prompt of a picture, or of each of several: `invert("star.png").prompt`.

    `images` are files or Pillow images; `overrides` are the command line's, such as
    `["method=ph2p", "generator=folder", "generator.path=/models/sd15", "scorer=siglip"]`. An
    `inverter` from an earlier `load_inverter` saves the loading and then brings its own configuration. Nothing
    is written.
    Raises UserError for a bad image or key.
    """
    inverter = inverter or load_inverter(load_config(list(overrides)))
    single = isinstance(images, str | Path | Image.Image)
    some = [images] if single else list(images)
    size, batch_size = inverter.generator.image_size, inverter.cfg.data.batch_size
    targets = [_target(image, number, size) for number, image in enumerate(some)]
    found = [r for k in range(0, len(some), batch_size) for r in inverter(targets[k : k + batch_size])]
    return found[0] if single else found


def _target(image: Picture, number: int, size: int) -> Target:
    if isinstance(image, Image.Image):
        try:
            return Target(f"image-{number}", "memory", from_pil(image, size))
        except Exception as error:  # Pillow decodes late, and raises nearly anything on broken bytes
            raise UserError(f"image-{number}: cannot be read as a picture; {' '.join(str(error).split())}") from error
    return Target(Path(image).name, str(image), load_image(image, size))
