"""Loading a generator: a diffusers folder, a hub id or a single file, and how it uses memory."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ph2p.errors import UserError
from ph2p.models.generators.base import Generator
from ph2p.models.generators.lora import merge_lora
from ph2p.models.generators.options import LoadOptions
from ph2p.models.generators.source import find, read
from ph2p.models.quiet import quiet


def load_generator(
    path_or_hub_id: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Generator:
    """A pipeline from a diffusers folder, the Hugging Face hub or a single checkpoint file.

    The class in `model_index.json` picks the family; weights are read from safetensors alone.

    Args:
        dtype: of the frozen parts but the VAE, which stays in float32 at least: it encodes a target once.
        options: the fields of `LoadOptions`.

    Raises:
        UserError: no such folder or hub model, unknown pipeline class, missing, damaged or pickled files, parts that
            do not fit each other, or an option that the family does not know.
    """
    wanted = LoadOptions(**options)
    with quiet():
        source = find(str(path_or_hub_id), wanted)
        pipeline = read(source, dtype, wanted.variant)
        if wanted.lora:
            merge_lora(pipeline, wanted)
        make: Callable[..., Generator] = source.family
        generator = make(pipeline, words=wanted.words, image_size=wanted.size, clip_skip=wanted.clip_skip)
    if wanted.vae_tiling:
        pipeline.vae.enable_tiling()
    if wanted.gradient_checkpointing:
        generator.denoiser.enable_gradient_checkpointing()
    if wanted.compile:
        _compile(generator, device)
    generator.place(device, wanted.offload).check_texts()
    return generator


def _compile(generator: Generator, device: str | torch.device) -> None:
    """The denoiser goes through torch.compile from its first call on; what counts its calls does not."""
    on_cpu = torch.device(device).type == "cpu"
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # as torch chooses
    if on_cpu and not shutil.which(compiler):
        advice = "install it, name another in CXX, or leave generator.compile out"
        raise UserError(f"generator.compile=true: the C++ compiler {compiler} is missing; {advice}")
    # With torch's own choice of memory formats, gradients of a U-Net came out wrong on the CPU (torch 2.13).
    options: dict[str, Any] | None = {"layout_optimization": False} if on_cpu else None
    generator.denoiser.forward = torch.compile(generator.denoiser.forward, options=options)
