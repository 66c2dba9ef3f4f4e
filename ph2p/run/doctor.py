"""`ph2p doctor`: whether everything is there that a run needs, and what is missing would bring."""

import os
import platform
from collections.abc import Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ph2p import __version__
from ph2p.config.compose import load_config
from ph2p.config.schema import GeneratorConfig, ScorerConfig
from ph2p.errors import UserError
from ph2p.models import hub
from ph2p.run.screen import Screen

PIPELINE = "model_index.json"  # tells a text-to-image model's folder from others
PACKAGES = ("torch", "lightning", "diffusers", "transformers", "huggingface-hub", "hydra-core", "numpy", "pillow")
EXTRAS = {  # of pyproject.toml: a module that it brings, and what that is for
    "docs": ("mkdocs", "make docs"),
    "heif": ("pillow_heif", "HEIC pictures"),
    "lora": ("peft", "generator.lora=..."),
    "metrics": ("torchvision", "evaluation.lpips=..."),
    "notebooks": ("ipykernel", "the notebooks"),
    "sentencepiece": ("sentencepiece", "T5 tokenizers that come as spiece.model, and scorer=siglip"),
    "sprites": ("resvg_py", "drawing the atlases of ph2p.world.sprites anew, which nothing else needs"),
    "study": ("krippendorff", "ph2p study analyse"),
    "tensorboard": ("tensorboard", "logger=tensorboard"),
    "ui": ("gradio", "ph2p ui"),
    "wandb": ("wandb", "logger=wandb"),
}


def examine(words: Sequence[str]) -> int:
    """Say what there is and what is missing for a run with the command line's words; returns the exit code.

    1: the model, the scorer or the second generator is out of reach. Nothing is downloaded but a file of some hundred
    bytes of each.
    """
    cfg, screen = load_config(list(words)), Screen()
    for title, lines in {"versions": versions(), "devices": devices(), "extras": extras()}.items():
        _show(screen, title, lines)
    models = [
        (f"{key}={part.name}", part.path, file, _options(part))
        for key, part, file in (("generator", cfg.generator, PIPELINE), ("scorer", cfg.scorer, "config.json"))
    ]
    if second := cfg.evaluation.transfer:
        models.append((f"evaluation.transfer={second}", second, PIPELINE, {}))
    code = 0
    for title, path, file, options in models:
        try:
            line = f"{path}: {reach(path, file, **options)}"
        except UserError as error:
            line, code = f"out of reach: {error}", 1
        _show(screen, title, [line])
    return code


def _options(part: GeneratorConfig | ScorerConfig) -> dict[str, Any]:
    """Where the hub's files of a model are looked for."""
    return {"revision": part.revision, "cache_dir": part.cache_dir, "local_files_only": part.local_files_only}


def _show(screen: Screen, title: str, lines: Sequence[str] | Iterator[str]) -> None:
    screen.say(title)
    for line in lines:
        screen.say(f"  {line}")


def versions() -> Iterator[str]:
    """A line a package."""
    yield f"ph2p {__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}"
    yield ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)


def devices() -> Iterator[str]:
    """A line a device that a run can use, with its memory."""
    page = os.sysconf("SC_PAGE_SIZE") / 2**30
    whole, free = (os.sysconf(name) * page for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield f"cpu: {cores} cores, {whole:.1f} GiB of memory, {free:.1f} GiB free"
    for index in range(torch.cuda.device_count()):
        free, whole = (number / 2**30 for number in torch.cuda.mem_get_info(index))
        yield f"cuda:{index}: {torch.cuda.get_device_name(index)}, {whole:.1f} GiB of memory, {free:.1f} GiB free"
    if torch.backends.mps.is_available():
        yield "mps: memory shared with the CPU"


def extras() -> Iterator[str]:
    """A line an extra: whether it is installed, and otherwise what it would bring and how to install it."""
    for extra, (module, what) in EXTRAS.items():
        missing = f"missing, needed for {what}: pip install 'ph2p[{extra}]'"
        yield f"{extra}: {'installed' if find_spec(module) else missing}"


def reach(path: str, file: str, **options: Any) -> str:
    """Where a model is: in a folder, in the hub's cache, or on the hub; raises UserError when it is nowhere.

    `file` tells a model's folder from others; from the hub it is fetched, with huggingface_hub's `options`.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return "a file"
    if place.is_dir():
        if not (place / file).is_file():
            raise UserError(f"{path}: no {file} in this folder; give the folder of a model")
        return "a folder"
    found = hub.download_file(path, file, "give another model", **options)
    weights = any(found.parent.rglob("*.safetensors"))
    return "in the hub's cache" if weights else "on the hub, to be downloaded by the first run"
