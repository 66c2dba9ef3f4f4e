"""Models on the Hugging Face hub: fetching what a run reads of them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import diffusers
import huggingface_hub
from huggingface_hub import constants

from ph2p.errors import UserError
from ph2p.models.plain import LACKING, plain_hub_errors
from ph2p.models.pretrained import NO_VARIANT, ONLY_PICKLES, ONLY_VARIANT, is_pickle, only_variant

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # not ./model, ../model or /model
CONFIGURATION = ["*.json", "*.txt", "*.model"]  # in subfolders too
MODEL = ["model.safetensors", "model-?????-of-?????.safetensors"]  # as transformers names them; not those of others


def download_file(hub_id: str, file: str, advice: str, **options: Any) -> Path:
    """A file of a model on the Hugging Face hub, from the cache if it is there; `advice` is for a model without it.

    Raises:
        UserError: not a hub id, or the hub does not give the file.
    """
    with _plain_errors(hub_id, f"the hub's model lacks the file {file}; {advice}"):
        return Path(huggingface_hub.hf_hub_download(hub_id, file, **options | _offline()))


def download_configuration(hub_id: str, **options: Any) -> Path:
    """The folder of a model on the hub without its weights: configurations and tokenizers.

    Raises:
        UserError: not a hub id, or the hub does not give them.
    """
    return _snapshot(hub_id, CONFIGURATION, **options)


def download_model(hub_id: str, **options: Any) -> Path:
    """The folder of a transformers model on the hub: configuration, tokenizer and weights, as safetensors alone.

    Raises:
        UserError: not a hub id, the hub does not give them, or has pickled weights only.
    """
    folder = _snapshot(hub_id, CONFIGURATION + MODEL, **options)
    if not any(folder.glob("*.safetensors")):
        _check_listing(hub_id, ["."], **options)
    return folder


def download_lora(hub_id: str, **options: Any) -> Path:
    """The folder with the LoRA weights of a hub model, those at its top, as safetensors alone.

    Raises:
        UserError: not a hub id, the hub does not give them, or has none such.
    """
    folder = _snapshot(hub_id, ["*.safetensors"], ignore_patterns=["*/*"], **options)
    if not any(folder.glob("*.safetensors")):
        _check_listing(hub_id, ["."], **options)
        raise UserError(f"{hub_id}: no .safetensors file at its top; choose another, or give a file of your own")
    return folder


def download_pipeline(
    pipeline: type[diffusers.DiffusionPipeline],
    hub_id: str,
    parts: list[str],
    absent: tuple[str, ...],
    *,
    variant: str | None = None,
    **options: Any,
) -> Path:
    """The folder of a pipeline on the hub, its components `parts` without the `absent`; weights as safetensors alone.

    Raises:
        UserError: not a hub id, the hub does not give them, has pickled weights only, or none of the variant.
    """
    chosen = dict(variant=variant, use_safetensors=True) | dict.fromkeys(absent)
    with _plain_errors(hub_id):
        try:
            return Path(pipeline.download(hub_id, **chosen, **options | _offline()))
        except (OSError, ValueError):
            _check_listing(hub_id, parts, variant, **options)
            raise


def _snapshot(hub_id: str, patterns: list[str], **options: Any) -> Path:
    with _plain_errors(hub_id):
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=patterns, **options | _offline()))


def _offline() -> dict[str, bool]:
    """With HF_HUB_OFFLINE, what is in the cache is taken at once, without a warning that nobody answers."""
    return dict(local_files_only=True) if constants.HF_HUB_OFFLINE else {}


def _check_listing(hub_id: str, parts: list[str], variant: str | None = None, **options: Any) -> None:
    """Say what is wrong with the weights that the hub lists in the folders `parts`, if anything is; needs the hub.

    Raises:
        UserError: pickled weights only, none of the variant, or of a variant only.
    """
    if (options | _offline()).get("local_files_only"):
        return
    with _plain_errors(hub_id):
        siblings = huggingface_hub.model_info(hub_id, revision=options.get("revision")).siblings or []
    files = [file for file in (PurePosixPath(sibling.rfilename) for sibling in siblings) if str(file.parent) in parts]
    safe = [file for file in files if file.suffix == ".safetensors"]
    for file in files:
        if is_pickle(file) and not any(other.parent == file.parent for other in safe):
            raise UserError(f"{PurePosixPath(hub_id) / file.parent}: {ONLY_PICKLES}")
    if variant and not any(f".{variant}" in file.name for file in safe):
        raise UserError(f"{hub_id}: {NO_VARIANT.format(variant)}")
    for part in parts if not variant else ():
        if only := only_variant({file.name for file in safe if str(file.parent) == part}):
            raise UserError(f"{hub_id}: {ONLY_VARIANT.format(only)}")


@contextmanager
def _plain_errors(hub_id: str, lacking: str = LACKING) -> Iterator[None]:
    if not HUB_ID.fullmatch(hub_id):
        raise UserError(f"{hub_id}: no such folder; give an existing one or a hub id such as owner/model")
    with plain_hub_errors(hub_id, lacking):
        yield
