"""Loading a generator: a diffusers folder, a hub id or a single file, LoRA weights, and how it uses memory."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

from ph2p.errors import UserError
from ph2p.models import hub, pretrained
from ph2p.models.generators.base import Generator
from ph2p.models.generators.families import FAMILIES

INDEX = diffusers.DiffusionPipeline.config_name  # model_index.json
LOADING = (  # arguments of `load_generator` that are keys of the configuration's `generator`, by the same names
    "config",
    "omit",
    "lora",
    "lora_scale",
    "lora_revision",
    "image_size",
    "clip_skip",
    "offload",
    "vae_tiling",
    "gradient_checkpointing",
    "compile",
    "revision",
    "variant",
    "cache_dir",
    "local_files_only",
)
LORA = "pytorch_lora_weights.safetensors"
WHOLE = "give a checkpoint of the whole pipeline, and as generator.config the folder that it belongs to"


def load_generator(
    path_or_hub_id: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    image_size: int | None = None,
    clip_skip: int | None = None,
    config: str | Path | None = None,
    omit: Sequence[str] = (),
    lora: str | Path | None = None,
    lora_scale: float = 1.0,
    lora_revision: str | None = None,
    offload: bool = False,
    vae_tiling: bool = False,
    gradient_checkpointing: bool = False,
    compile: bool = False,
    local_files_only: bool = False,
    revision: str | None = None,
    variant: str | None = None,
    cache_dir: str | Path | None = None,
    **words: Any,
) -> Generator:
    """A pipeline from a diffusers folder, the Hugging Face hub or a single checkpoint file.

    The class in `model_index.json` picks the family; weights are read from safetensors alone.

    Args:
        dtype: of the frozen parts but the VAE, which stays in float32 at least: it encodes a target once.
        image_size, clip_skip: see `Generator`.
        config: of a single file, a diffusers folder or hub id with the configuration; None: what the file looks like.
        omit: components to leave out, where the family can do without.
        lora: a file, folder or hub id (at `lora_revision`) with LoRA weights, merged into the pipeline's times
            `lora_scale`.
        offload: VAE and encoders without a gradient are on the device only while they work.
        vae_tiling: large pictures go through the VAE in tiles.
        gradient_checkpointing: the denoiser keeps less and computes more.
        compile: the denoiser goes through torch.compile.
        words: arguments of `Vocabulary`, such as `blocklist` and `allowlist`.

    Raises:
        UserError: no such folder or hub model, unknown pipeline class, missing, damaged or pickled files, or an
            option that the family does not know.
    """
    name = str(path_or_hub_id)
    place, file = Path(name).expanduser(), None
    if place.is_file():
        pretrained.check_safe(place)
        file, name = place, str(config or _config_of(place))
    cache = dict(local_files_only=local_files_only, cache_dir=cache_dir)
    family, pipeline = _load_pipeline(name, file, tuple(omit), dtype, variant, cache | dict(revision=revision))
    if lora:
        _merge_lora(pipeline, str(lora), lora_scale, cache | dict(revision=lora_revision))
    words = {key: value for key, value in words.items() if value is not None}
    generator = family(pipeline, words=words, image_size=image_size, clip_skip=clip_skip)
    if vae_tiling:
        pipeline.vae.enable_tiling()
    if gradient_checkpointing:
        generator.denoiser.enable_gradient_checkpointing()
    if compile:
        _compile(generator, device)
    return generator.place(device, offload)


def _compile(generator: Generator, device: str | torch.device) -> None:
    """The denoiser goes through torch.compile from its first call on."""
    on_cpu = torch.device(device).type == "cpu"
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # as torch chooses
    if on_cpu and not shutil.which(compiler):
        mend = "install it, name another in CXX, or leave generator.compile out"
        raise UserError(f"generator.compile=true: the C++ compiler {compiler} is missing; {mend}")
    # With torch's own choice of memory formats, gradients of a U-Net came out wrong on the CPU (torch 2.13).
    generator.denoiser.compile(options=dict(layout_optimization=False) if on_cpu else None)


def _load_pipeline(
    name: str,
    file: Path | None,
    omit: tuple[str, ...],
    dtype: torch.dtype,
    variant: str | None,
    options: dict[str, Any],
) -> tuple[type[Generator], diffusers.DiffusionPipeline]:
    """The pipeline of a folder or hub id `name`, with the weights of `file` if that is given."""
    folder = Path(name).expanduser()
    remote = not folder.exists()
    index_file = hub.download_file(name, INDEX, "choose a diffusers pipeline", **options) if remote else folder / INDEX
    index = pretrained.read_json(index_file, "give the folder of a diffusers pipeline")
    family = _family(name, index)
    absent = family.absent + _left_out(family, omit, None if remote else folder)
    with pretrained.plain_errors(family.pipeline_class, "install a newer diffusers"):
        pipeline_class = pretrained.import_pipeline(family.pipeline_class)
    if file and not hasattr(pipeline_class, "from_single_file"):
        raise UserError(f"{file}: {family.pipeline_class} cannot be read from one file; give a diffusers folder")
    if remote and file:
        folder = hub.download_configuration(name, **options)
    elif remote:
        parts = pretrained.components(index, absent)
        folder = hub.download_pipeline(pipeline_class, name, parts, absent, variant=variant, **options)
    mend = WHOLE if file else "copy or download it again"
    with pretrained.plain_errors(str(file or name), mend), pretrained.no_progress_bars():
        pretrained.check_components(folder, index, absent, variant, weights=file is None)
        pipeline = _read_pipeline(pipeline_class, folder, file, absent, dtype, variant)
        pretrained.check_complete(pipeline)
    return family, pipeline


def _read_pipeline(
    pipeline_class: type[diffusers.DiffusionPipeline],
    folder: Path,
    file: Path | None,
    absent: tuple[str, ...],
    dtype: torch.dtype,
    variant: str | None,
) -> diffusers.DiffusionPipeline:
    options: dict[str, Any] = dict.fromkeys(absent)
    # The VAE's own precision matters once for each target, and float16 overflows in some of them.
    vae_dtype = torch.promote_types(dtype, torch.float32)
    if file:
        pipeline = pipeline_class.from_single_file(str(file), config=str(folder), dtype=dtype, **options)
        if dtype != vae_dtype:
            pipeline.vae.to(vae_dtype)
        return pipeline
    if "safety_checker" in absent:
        options["requires_safety_checker"] = False
    options |= dict(variant=variant, use_safetensors=True)
    return pipeline_class.from_pretrained(folder, dtype=dict(default=dtype, vae=vae_dtype), **options)


def _family(name: str, index: dict[str, Any]) -> type[Generator]:
    family = FAMILIES.get(index.get("_class_name", ""))
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise UserError(f"{name}: pipelines of class {index.get('_class_name')} are not supported; known: {known}")
    return family


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

    with pretrained.plain_errors(str(file), WHOLE):
        return fetch_diffusers_config(load_single_file_checkpoint(str(file)))["pretrained_model_name_or_path"]


def _merge_lora(pipeline: diffusers.DiffusionPipeline, lora: str, scale: float, options: dict[str, Any]) -> None:
    """Add LoRA weights, times `scale`, to the weights that they belong to (arXiv 2106.09685, section 4.1)."""
    if not hasattr(pipeline, "load_lora_weights"):
        raise UserError(f"generator.lora={lora}: {type(pipeline).__name__} takes no LoRA weights; leave it out")
    if not diffusers.utils.is_peft_available():
        raise UserError("generator.lora: the package peft is missing; pip install 'ph2p[lora]'")
    file = _lora_file(lora, options)
    with pretrained.plain_errors(lora, "give LoRA weights of this model"):
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, use_safetensors=True)
        pipeline.fuse_lora(lora_scale=scale)
        pipeline.unload_lora_weights()


def _lora_file(lora: str, options: dict[str, Any]) -> Path:
    """The file that a file, folder or hub id of LoRA weights names: the one of diffusers' own name, or the only one."""
    place = Path(lora).expanduser()
    if place.is_file():
        pretrained.check_safe(place)
        return place
    if not place.is_dir():
        if not hub.HUB_ID.fullmatch(lora):
            raise UserError(f"generator.lora={lora}: no such file or folder; give an existing one or a hub id")
        place = hub.download_lora(lora, **options)
    pretrained.check_weights(place)
    files = sorted(place.glob("*.safetensors"))
    files = [file for file in files if file.name == LORA] or files
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(f"generator.lora={lora}: it holds {names}; give the path of one of these files")
    return files[0]
