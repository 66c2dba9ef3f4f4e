"""Folders of pretrained weights: finding and checking them, and saying in one line what is wrong."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import transformers
from huggingface_hub import errors as hub
from torch import nn

from ph2p.errors import UserError

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # not ./model, ../model or /model
TOKENIZER_FILES = ({"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"spiece.model"}, {"tokenizer.model"})
PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")
CONFIGURATION = ["*.json", "*.txt", "*.model"]  # in subfolders too
UNSAFE = "pickled weights are unsafe; convert or download them as safetensors"
HUB_TROUBLE: tuple[tuple[type[Exception], str], ...] = (  # the first that fits: some are kinds of later ones
    (hub.GatedRepoError, "the model is gated; accept its licence on the hub and set HF_TOKEN"),
    (hub.RepositoryNotFoundError, "neither a folder nor a model on the hub; check the name, or set HF_TOKEN"),
    (hub.RevisionNotFoundError, "the hub has no such revision of it; check the revision"),
    (
        hub.LocalEntryNotFoundError,
        "not a folder, and the hub is out of reach; check the path or the connection",
    ),
    (hub.EntryNotFoundError, "the hub's model lacks the file {file}; choose a diffusers pipeline"),
)


def download_file(hub_id: str, file: str, **options: Any) -> Path:
    """A file of a model on the Hugging Face hub, from the cache if it is there.

    Raises:
        UserError: not a hub id, or the hub does not give the file.
    """
    with _plain_hub_errors(hub_id, file):
        return Path(huggingface_hub.hf_hub_download(hub_id, file, **options))


def download_configuration(hub_id: str, **options: Any) -> Path:
    """The folder of a model on the hub without its weights: configurations and tokenizers.

    Raises:
        UserError: not a hub id, or the hub does not give them.
    """
    with _plain_hub_errors(hub_id, "model_index.json"), no_progress_bars():
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=CONFIGURATION, **options))


def download_model(hub_id: str, **options: Any) -> Path:
    """The folder of a transformers model on the hub: configuration, tokenizer and weights, as safetensors alone.

    Raises:
        UserError: not a hub id, or the hub does not give them.
    """
    with _plain_hub_errors(hub_id, "config.json"):
        patterns = [*CONFIGURATION, "*.safetensors"]
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=patterns, **options))


@contextmanager
def _plain_hub_errors(hub_id: str, file: str) -> Iterator[None]:
    if not HUB_ID.fullmatch(hub_id):
        raise UserError(f"{hub_id}: no such folder; give an existing one or a hub id such as owner/model")
    try:
        yield
    except (hub.HfHubHTTPError, OSError, ValueError) as error:
        for kind, message in HUB_TROUBLE:
            if isinstance(error, kind):
                raise UserError(f"{hub_id}: {message.format(file=file)}") from error
        raise UserError(f"{hub_id}: the hub answered: {first_line(error)}; try again later") from error


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


def check_components(folder: Path, index: dict[str, Any], skipped: tuple[str, ...], weights: bool = True) -> None:
    """Every component that `model_index.json` names has its files; without `weights`, but for those.

    Raises:
        UserError: a folder is missing, or without safetensors or a tokenizer's tables.
    """
    for name, entry in index.items():
        if name in skipped or not isinstance(entry, list) or entry[0] is None:
            continue
        part = folder / name
        if not part.is_dir() or not _names(part):
            raise UserError(f"{part}: the component is missing; copy or download the whole pipeline")
        if weights and (part / "config.json").exists():
            check_weights(part)
        if name.startswith("tokenizer"):
            check_tokenizer(part)


def check_tokenizer(folder: Path) -> None:
    """The folder holds a tokenizer's tables: without them transformers builds one of two tokens and says nothing.

    Raises:
        UserError: it does not.
    """
    if not any(files <= _names(folder) for files in TOKENIZER_FILES):
        raise UserError(f"{folder}: the tokenizer's tables are missing; copy or download the whole model")


def check_weights(folder: Path) -> None:
    """The folder holds safetensors; pickled weights are refused, because loading a pickle runs its code.

    Raises:
        UserError: it does not.
    """
    if any(folder.glob("*.safetensors")):
        return
    if any(any(folder.glob(pattern)) for pattern in PICKLES):
        raise UserError(f"{folder}: only pickled weights, and {UNSAFE}")
    raise UserError(f"{folder}: no .safetensors file; copy or download the whole model")


def check_safe(file: Path) -> None:
    """A file of weights is no pickle.

    Raises:
        UserError: its name does not end in .safetensors.
    """
    if any(file.match(pattern) for pattern in PICKLES):
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
