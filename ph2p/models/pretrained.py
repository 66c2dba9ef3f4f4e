"""Folders of pretrained weights: finding and checking them, and saying in one line what is wrong."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import diffusers
import transformers
from torch import nn

from ph2p.errors import UserError

TOKENIZER_FILES = ({"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"spiece.model"}, {"tokenizer.model"})
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
WHOLE_MODEL = "copy or download the whole model"
UNSAFE = "pickled weights are unsafe; convert or download them as safetensors"
ONLY_PICKLES = f"only pickled weights, and {UNSAFE}"
NO_VARIANT = "no weights of the variant {}; check the variant, or leave it out"


def read_json(path: Path, mend: str) -> dict[str, Any]:
    """A JSON object; `mend` tells the user what to do if it cannot be read.

    Raises:
        UserError: the file is missing or not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {mend}") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON; {mend}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; {mend}")
    return content


def components(index: dict[str, Any], skipped: tuple[str, ...]) -> list[str]:
    """The names of the components that `model_index.json` says the pipeline has."""
    named = (name for name, entry in index.items() if isinstance(entry, list) and entry and entry[0] is not None)
    return [name for name in named if name not in skipped]


def check_components(
    folder: Path, index: dict[str, Any], skipped: tuple[str, ...], variant: str | None = None, weights: bool = True
) -> None:
    """Every component that `model_index.json` names has its files; without `weights`, but for those.

    Raises:
        UserError: a folder is missing, or without safetensors or a tokenizer's tables; no weights of the variant.
    """
    if weights and variant and not any(folder.glob(f"*/*.{variant}*.safetensors")):
        raise UserError(f"{folder}: {NO_VARIANT.format(variant)}")
    for name in components(index, skipped):
        part = folder / name
        if not part.is_dir() or not _names(part):
            raise UserError(f"{part}: the component is missing; copy or download the whole pipeline")
        if weights and (part / "config.json").exists():
            check_weights(part, variant)
        if name.startswith("tokenizer"):
            check_tokenizer(part)


def check_tokenizer(folder: Path) -> None:
    """The folder holds a tokenizer's tables: without them transformers builds one of two tokens and says nothing.

    Raises:
        UserError: it does not.
    """
    if not any(files <= _names(folder) for files in TOKENIZER_FILES):
        raise UserError(f"{folder}: the tokenizer's tables are missing; {WHOLE_MODEL}")


def check_weights(folder: Path, variant: str | None = None) -> None:
    """The folder holds safetensors, all shards of them; pickled weights are refused: loading a pickle runs its code.

    Raises:
        UserError: it does not.
    """
    if any(folder.glob("*.safetensors")):
        _check_shards(folder, variant)
    elif any(map(is_pickle, folder.iterdir())):
        raise UserError(f"{folder}: {ONLY_PICKLES}")
    else:
        raise UserError(f"{folder}: no .safetensors file; {WHOLE_MODEL}")


def _check_shards(folder: Path, variant: str | None) -> None:
    """All files that the index of sharded weights names are there, as both libraries find them out late or never."""
    has_variant = variant and any(folder.glob(f"*.{variant}*.safetensors"))  # else the plain weights stand in for it
    for index in folder.glob(f"*.safetensors.index.{variant}.json" if has_variant else "*.safetensors.index.json"):
        if index.name.startswith("model.") and (folder / "model.safetensors").exists() and not has_variant:
            continue  # an index that was left behind: transformers reads the single file
        shards = read_json(index, WHOLE_MODEL).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise UserError(f"{index}: it names no shards; {WHOLE_MODEL}")
        for shard in sorted(set(shards.values())):
            if not (folder / shard).is_file():
                raise UserError(f"{folder / shard}: this shard of the weights is missing; {WHOLE_MODEL}")


def is_pickle(file: PurePath) -> bool:
    """Whether a file's name is one of pickled weights."""
    return file.suffix in PICKLES


def check_safe(file: Path) -> None:
    """A file of weights is no pickle.

    Raises:
        UserError: its name does not end in .safetensors.
    """
    if is_pickle(file):
        raise UserError(f"{file}: {UNSAFE}")
    if file.suffix != ".safetensors":
        raise UserError(f"{file}: no .safetensors file; give one, or the folder of a model")


def check_complete(pipeline: diffusers.DiffusionPipeline) -> None:
    """Every weight of the pipeline was in its files.

    Raises:
        UserError: some weights were never filled.
    """
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module) and any(weight.is_meta for weight in part.parameters()):
            raise UserError(f"{name}: the weights file lacks some of its weights; copy or download it again")


def import_pipeline(name: str) -> type[diffusers.DiffusionPipeline]:
    """A pipeline class of diffusers, without the warning that torchvision is missing: we do not need it."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        return getattr(diffusers, name)
    finally:
        transformers.logging.set_verbosity(verbosity)


@contextmanager
def plain_errors(name: str, mend: str = "copy or download it again") -> Iterator[None]:
    """Whatever goes wrong while loading becomes one line: damaged files raise errors of any kind."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name}: cannot be loaded ({first_line(error)}); {mend}") from error


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """While inside, diffusers and transformers show no bars for reading weights."""
    loggers = [logs for logs in (diffusers.logging, transformers.logging) if logs.is_progress_bar_enabled()]
    for logs in loggers:
        logs.disable_progress_bar()
    try:
        yield
    finally:
        for logs in loggers:
            logs.enable_progress_bar()


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its kind if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".:")
