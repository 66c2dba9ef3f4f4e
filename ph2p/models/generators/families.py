"""The families by the pipeline class that `model_index.json` names. docs/families.md says how to add one."""

import pkgutil
from typing import Any

from ph2p.errors import UserError
from ph2p.models.generators.base import Generator

FAMILIES = {  # pipeline class -> module:class in this folder
    "StableDiffusionPipeline": "stable_diffusion:StableDiffusion",
    "StableDiffusionXLPipeline": "stable_diffusion_xl:StableDiffusionXL",
    "StableDiffusion3Pipeline": "stable_diffusion_3:StableDiffusion3",
    "FluxPipeline": "flux:Flux",
    "PixArtSigmaPipeline": "pixart:PixArtSigma",
}


def family_of(name: str, index: dict[str, Any]) -> type[Generator]:
    """The family of the model `name` by its `model_index.json`.

    Raises:
        UserError: there is none for its class.
    """
    pipeline_class = index.get("_class_name", "")
    if pipeline_class not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UserError(f"{name}: pipelines of class {pipeline_class} are not supported; known: {known}")
    family: type[Generator] = pkgutil.resolve_name(f"{__package__}.{FAMILIES[pipeline_class]}")
    return family
