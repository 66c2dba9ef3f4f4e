"""LoRA weights: found, merged into a pipeline, and refused where they do not fit it."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from ph2p.errors import UserError
from ph2p.models import hub, pretrained
from ph2p.models.generators.options import LoadOptions
from ph2p.models.plain import plain_errors

OWN_NAME = "pytorch_lora_weights.safetensors"  # as diffusers saves them
SHOWN = 3  # keys that a message names


def merge_lora(pipeline: Any, options: LoadOptions) -> None:
    """Add the LoRA weights of `options`, times their scale, to those that they belong to (arXiv 2106.09685, 4.1).

    Raises:
        UserError: there are none, or some of them fit nothing in the pipeline.
    """
    lora = str(options.lora)
    if not hasattr(pipeline, "load_lora_weights"):
        raise UserError(f"generator.lora={lora}: {type(pipeline).__name__} takes no LoRA weights; leave it out")
    if not diffusers.utils.is_peft_available():
        raise UserError("generator.lora: the package peft is missing; pip install 'ph2p[lora]'")
    file = _lora_file(lora, options.cache | {"revision": options.lora_revision})
    with plain_errors(lora, "give LoRA weights of this model"):
        try:
            pipeline.load_lora_weights(str(file.parent), weight_name=file.name, use_safetensors=True)
        finally:  # also where diffusers fails at keys that fit nothing: it does not name them
            _check_taken(pipeline, lora, file)
        pipeline.fuse_lora(lora_scale=options.lora_scale)
        pipeline.unload_lora_weights()


def _check_taken(pipeline: Any, lora: str, file: Path) -> None:
    """Each weight in the file now stands in the pipeline, and has its counterpart; diffusers passes over others."""
    unet = {"unet_config": pipeline.unet.config} if getattr(pipeline, "unet", None) else {}
    given = pipeline.lora_state_dict(str(file.parent), weight_name=file.name, use_safetensors=True, **unet)
    given = given[0] if isinstance(given, tuple) else given
    wanted = {key: value for key, value in given.items() if "alpha" not in key}
    taken = [
        weight
        for part in pipeline.components.values()
        if isinstance(part, nn.Module)
        for name, weight in part.named_parameters()
        if "lora_" in name
    ]
    if len(wanted) == len(taken) and wanted:
        return
    lost = sorted(key for key, value in wanted.items() if not any(_same(value, weight) for weight in taken))
    if not lost:
        raise UserError(f"{lora}: it lacks counterparts of some of its weights; give LoRA weights of this model")
    names = ", ".join(lost[:SHOWN]) + (", ..." if len(lost) > SHOWN else "")
    count = f"{len(lost)} of {len(wanted)}"
    raise UserError(f"{lora}: {count} weights fit nothing in this model ({names}); give LoRA weights of this model")


def _same(value: Tensor, weight: Tensor) -> bool:
    """Up to half precision, in which either may have been kept."""
    return value.shape == weight.shape and torch.allclose(value.float(), weight.detach().float().cpu(), 0.01, 1e-6)


def _lora_file(lora: str, options: dict[str, Any]) -> Path:
    """The file that a file, folder or hub id of LoRA weights names: the one of diffusers' own name, or the only one."""
    place = Path(lora).expanduser()
    if place.exists() and options.get("revision"):
        raise UserError(f"generator.lora_revision={options['revision']}: {place} is not on the hub; leave it out")
    if place.is_file():
        pretrained.check_safe(place)
        return place
    if not place.is_dir():
        if not hub.HUB_ID.fullmatch(lora):
            raise UserError(f"generator.lora={lora}: no such file or folder; give an existing one or a hub id")
        place = hub.download_lora(lora, **options)
    pretrained.check_weights(place)
    files = sorted(place.glob("*.safetensors"))
    files = [file for file in files if file.name == OWN_NAME] or files
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(f"generator.lora={lora}: it holds {names}; give the path of one of these files")
    return files[0]
