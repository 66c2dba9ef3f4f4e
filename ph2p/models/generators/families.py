"""The families by the pipeline class that `model_index.json` names. docs/families.md says how to add one."""

from ph2p.models.generators.base import Generator
from ph2p.models.generators.flux import Flux
from ph2p.models.generators.pixart import PixArtSigma
from ph2p.models.generators.stable_diffusion import StableDiffusion
from ph2p.models.generators.stable_diffusion_3 import StableDiffusion3
from ph2p.models.generators.stable_diffusion_xl import StableDiffusionXL

FAMILIES: dict[str, type[Generator]] = {
    family.pipeline_class: family
    for family in (StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux, PixArtSigma)
}
