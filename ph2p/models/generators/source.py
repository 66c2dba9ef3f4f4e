"""Where a pipeline is read from, and reading it: nothing that was asked for may silently come to nothing."""

import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from ph2p.errors import UserError
from ph2p.models import hub, pretrained
from ph2p.models.generators.base import Generator
from ph2p.models.generators.families import family_of
from ph2p.models.generators.options import LoadOptions
from ph2p.models.plain import AGAIN, plain_errors

INDEX = "model_index.json"
WHOLE = "give a checkpoint of the whole pipeline, and as generator.config the folder that it belongs to"
# Options of schedulers that change the noise or what the denoiser was trained to predict. Files often hold options
# of another scheduler that change neither, and each scheduler passes over those.
DECISIVE = ("prediction_type", "rescale_betas_zero_snr", "trained_betas", "beta_start", "beta_end", "beta_schedule")


@dataclass(frozen=True)
class Source:
    """A pipeline's folder, with the weights in one file where `file` is given."""

    name: str  # as the user calls it
    folder: Path
    file: Path | None
    index: dict[str, Any]  # the content of model_index.json
    family: type[Generator]
    absent: tuple[str, ...]  # components that are left out


def find(name: str, options: LoadOptions) -> Source:
    """What a folder, a hub id or a file is, with everything downloaded that it needs.

    Raises:
        UserError: there is no such thing, or it is no pipeline of a known class.
    """
    place = Path(name).expanduser()
    if not place.is_file():
        if options.config:
            raise UserError(f"generator.config={options.config}: is for a single file of weights; leave it out")
        return _find(name, None, options)
    pretrained.check_safe(place)
    if options.variant:
        raise UserError(f"generator.variant={options.variant}: a single file has none; leave it out")
    if options.config:
        return _find(str(options.config), place, options)
    guessed = _config_of(place)
    try:
        return _find(guessed, place, options)
    except UserError as error:
        reason = str(error).removeprefix(f"{guessed}: ")
        advice = "give as generator.config the folder or hub id of the pipeline that it belongs to"
        raise UserError(f"{place}: it looks like a checkpoint of {guessed} ({reason}); {advice}") from error


def _find(name: str, file: Path | None, options: LoadOptions) -> Source:
    folder = Path(name).expanduser()
    remote = not folder.exists()
    if options.revision and not remote:
        raise UserError(f"generator.revision={options.revision}: {folder} is no model on the hub; leave it out")
    cache = options.cache | {"revision": options.revision}
    index_file = hub.download_file(name, INDEX, "choose a diffusers pipeline", **cache) if remote else folder / INDEX
    index = pretrained.read_json(index_file, "give the folder of a diffusers pipeline")
    family = family_of(name, index)
    absent = family.absent + _left_out(family, tuple(options.omit), None if remote else folder)
    kind = _pipeline_class(family)
    if file and not hasattr(kind, "from_single_file"):
        raise UserError(f"{file}: {family.pipeline_class} cannot be read from one file; give a diffusers folder")
    if remote and file:
        folder = hub.download_configuration(name, **cache)
    elif remote:
        parts = pretrained.components(index, absent)
        folder = hub.download_pipeline(kind, name, parts, absent, variant=options.variant, **cache)
    return Source(name, folder, file, index, family, absent)


def read(source: Source, dtype: torch.dtype, variant: str | None) -> Any:
    """The pipeline of diffusers, its VAE in float32 at least.

    Raises:
        UserError: files are missing or damaged, or hold other weights or options than the model's.
    """
    with plain_errors(str(source.file or source.name), WHOLE if source.file else AGAIN):
        pretrained.check_components(source.folder, source.index, source.absent, variant, weights=source.file is None)
        check_scheduler(source.folder, source.index)
        pipeline = _read_file(source, dtype) if source.file else _read_folder(source, dtype, variant)
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module) and any(weight.is_meta for weight in part.parameters()):
                raise UserError(f"{name}: the weights file lacks some of its weights; {AGAIN}")
    return pipeline


def _read_file(source: Source, dtype: torch.dtype) -> Any:
    options: dict[str, Any] = dict.fromkeys(source.absent)
    kind = _pipeline_class(source.family)
    pipeline = kind.from_single_file(str(source.file), config=str(source.folder), dtype=dtype, **options)
    # The VAE's own precision matters once for each target, and float16 overflows in some of them.
    pipeline.vae.to(torch.promote_types(dtype, torch.float32))
    return pipeline


def _read_folder(source: Source, dtype: torch.dtype, variant: str | None) -> Any:
    """Every model by its own class first, which tells what of its weights was in the file; then the pipeline."""
    options: dict[str, Any] = dict.fromkeys(source.absent)
    for name in pretrained.components(source.index, source.absent):
        kind = _model_class(*source.index[name])
        if kind is not None:
            exact = torch.promote_types(dtype, torch.float32) if name == "vae" else dtype
            options[name] = _read_model(kind, source.folder / name, exact, variant)
    if "safety_checker" in source.absent:
        options["requires_safety_checker"] = False
    return _pipeline_class(source.family).from_pretrained(source.folder, **options)


def _read_model(kind: Any, folder: Path, dtype: torch.dtype, variant: str | None) -> nn.Module:
    own = variant if variant and any(folder.glob(f"*.{variant}*.safetensors")) else None  # as the pipelines do
    model: nn.Module
    model, found = kind.from_pretrained(
        folder, dtype=dtype, variant=own, use_safetensors=True, output_loading_info=True
    )
    pretrained.check_filled(folder, found)
    return model


def check_scheduler(folder: Path, index: dict[str, Any]) -> None:
    """The scheduler knows the options in its file, as far as they change what the denoiser was trained for.

    Raises:
        UserError: it would pass over one.
    """
    name = index["scheduler"][1]
    kind = getattr(diffusers, name, None)
    file = folder / "scheduler" / "scheduler_config.json"
    if kind is None or not file.exists():
        return  # the pipeline's own loader says so
    config = pretrained.read_json(file, AGAIN)
    known = inspect.signature(kind.__init__).parameters
    relatives = kind._get_compatibles() if hasattr(kind, "_get_compatibles") else []
    related = {option for relative in relatives for option in inspect.signature(relative.__init__).parameters}
    for option, value in config.items():
        ignored = not option.startswith("_") and option not in known
        if ignored and (option not in related or (option in DECISIVE and value not in (None, False, "epsilon"))):
            raise UserError(f"{file}: {name} has no option {option}; take it out, or take a scheduler that has it")


def _model_class(library: str, name: str) -> Any:
    """The class of a component with weights; None for tokenizers, schedulers and what the libraries do not know."""
    if library not in ("diffusers", "transformers"):
        return None
    kind = getattr(importlib.import_module(library), name, None)
    return kind if isinstance(kind, type) and issubclass(kind, nn.Module) else None


def _pipeline_class(family: type[Generator]) -> Any:
    with plain_errors(family.pipeline_class, "install a newer diffusers"):
        return getattr(diffusers, family.pipeline_class)


def _left_out(family: type[Generator], omit: tuple[str, ...], folder: Path | None) -> tuple[str, ...]:
    """The optional components that the user does not want or the folder does not have: all of them, or none."""
    if not set(omit) <= set(family.optional):
        may = f"may be left out: {', '.join(family.optional)}" if family.optional else "nothing may be left out"
        raise UserError(f"generator.omit={list(omit)}: of {family.pipeline_class} {may}")
    missing = folder is not None and any(not (folder / name).is_dir() for name in family.optional)
    return family.optional if omit or missing else ()


def _config_of(file: Path) -> str:
    """The hub id of the pipeline whose weights a single file looks like."""
    from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint

    with plain_errors(str(file), WHOLE):
        config: dict[str, str] = fetch_diffusers_config(load_single_file_checkpoint(str(file)))
        return config["pretrained_model_name_or_path"]
