"""What can be known of a pipeline before any work: its parts fit each other, and it can paint what is asked for."""

import copy
import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch

from ph2p.errors import UserError


def check_channels(denoiser: Any, channels: int, packing: int) -> None:
    """The denoiser takes the VAE's latents and nothing else.

    Raises:
        UserError: other channels, such as those of a model for inpainting.
    """
    expected, found = channels * packing**2, denoiser.config.in_channels
    if found != expected:
        raise UserError(
            f"{type(denoiser).__name__}: it takes {found} channels and the VAE gives {expected}; "
            "take a text-to-image model, not one for inpainting, editing or upscaling, with its own VAE"
        )


def check_conditioning(denoiser: Any, conditioning: Mapping[str, torch.Tensor]) -> None:
    """What the text encoders give has the width that the denoiser takes.

    Raises:
        UserError: it has another.
    """
    config = denoiser.config
    texts = (config.get(key) for key in ("caption_channels", "joint_attention_dim", "cross_attention_dim"))
    widths = {
        "encoder_hidden_states": next((width for width in texts if isinstance(width, int)), None),
        "pooled_projections": config.get("pooled_projection_dim"),
    }
    if added := config.get("projection_class_embeddings_input_dim"):  # and six numbers: sizes and the crop
        widths["text_embeds"] = added - 6 * config.get("addition_time_embed_dim")
    for name, width in widths.items():
        found = conditioning[name].shape[-1] if name in conditioning else None
        if None not in (width, found) and width != found:
            raise UserError(
                f"{type(denoiser).__name__}: it takes texts of width {width} and the text encoder gives {found} "
                f"({name}); take both from the same model"
            )


def check_image_size(size: tuple[int, int], denoiser: Any, scale: int, packing: int) -> None:
    """The pipeline can make renderings of this height and width.

    Raises:
        UserError: a side is no multiple of what the model needs, or too long.
    """
    patch = packing * (denoiser.config.get("patch_size") or 1)
    step = math.lcm(8, scale * patch)
    shown = size[0] if size[0] == size[1] else list(size)
    if any(side % step for side in size):
        raise UserError(f"generator.image_size={shown}: this model needs a multiple of {step}")
    places = denoiser.config.get("pos_embed_max_size")
    if places and max(size) > places * scale * patch:
        raise UserError(f"generator.image_size={shown}: this model paints at most {places * scale * patch} pixels")


def check_sampling(pipeline: Any, steps: Mapping[str, int], guidance_rescale: float) -> None:
    """The pipeline can paint with so many steps, each by the key that asks for it, and so rescaled.

    The scheduler alone goes through all its steps with an empty latent: some find out at the last step what they
    cannot do, after minutes of a large model's work.

    Raises:
        UserError: it cannot.
    """
    if guidance_rescale and "guidance_rescale" not in inspect.signature(pipeline.__call__).parameters:
        raise UserError(f"generator.guidance_rescale={guidance_rescale}: {type(pipeline).__name__} has none; give 0")
    for key, count in steps.items():
        try:
            _rehearse(copy.deepcopy(pipeline.scheduler), count)
        except Exception as error:  # schedulers raise anything
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".:")
            name = type(pipeline.scheduler).__name__
            raise UserError(f"{key}={count}: {name} cannot paint in so many steps ({reason}); give fewer") from error


def check_negative(pipeline: Any, guidance_scale: float) -> None:
    """A negative prompt acts, by classifier-free guidance.

    Raises:
        UserError: the pipeline's guidance is distilled into the model (FLUX.1), or the scale is 1.
    """
    known = inspect.signature(pipeline.__call__).parameters
    if "negative_prompt" not in known or "true_cfg_scale" in known:
        raise UserError(
            f"{type(pipeline).__name__}: its guidance is part of the model and takes no negative prompt; "
            "take another family"
        )
    if guidance_scale <= 1:
        raise UserError(
            f"generator.guidance_scale={guidance_scale}: a negative prompt acts by guidance; give more than 1"
        )


def _rehearse(scheduler: Any, steps: int) -> None:
    if steps > scheduler.config.num_train_timesteps:
        raise UserError(f"it has {scheduler.config.num_train_timesteps} timesteps")
    shifting = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    scheduler.set_timesteps(steps, **shifting)
    latent = torch.zeros(1, 4, 8, 8)
    for timestep in scheduler.timesteps:
        latent = scheduler.step(_scaled(scheduler, latent, timestep), timestep, latent).prev_sample


def _scaled(scheduler: Any, latent: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """As the denoiser gets it; those of flow matching leave it as it is."""
    return scheduler.scale_model_input(latent, timestep) if hasattr(scheduler, "scale_model_input") else latent
