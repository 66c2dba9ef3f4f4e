"""Weights as others write them, of small pipelines: single files, LoRA weights; and what a generator predicts."""

import re
from pathlib import Path

import diffusers
import torch
from diffusers.utils import convert_state_dict_to_diffusers
from safetensors.torch import save_file

TEXT = "red dog"
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {  # the small U-Net's parts under the names of the original code of Stable Diffusion
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE = (
    (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
    (r"down_blocks\.0\.downsamplers\.0", "down.0.downsample"),
    (r"up_blocks\.0\.resnets\.(\d)", r"up.1.block.\1"),
    (r"up_blocks\.1\.resnets\.(\d)", r"up.0.block.\1"),
    (r"up_blocks\.0\.upsamplers\.0", "up.1.upsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"group_norm", "norm"),
    (r"to_q", "q"),
    (r"to_k", "k"),
    (r"to_v", "v"),
    (r"to_out\.0", "proj_out"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
)


def save_checkpoint(folder: Path, file: Path) -> Path:
    """One file as Stable Diffusion's original code writes it, of a small pipeline's folder."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    weights = {}
    for name, value in pipeline.unet.state_dict().items():
        part = next(part for part in UNET if name.startswith(part + "."))
        rest = name[len(part) + 1 :]
        if ".resnets." in part:
            layer = rest.rpartition(".")[0]
            rest = rest.replace(layer, RESNET[layer], 1)
        weights[f"model.diffusion_model.{UNET[part]}.{rest}"] = value
    for name, value in pipeline.vae.state_dict().items():
        attention = ".attentions." in name and "norm" not in name and name.endswith("weight")
        for pattern, original in VAE:
            name = re.sub(pattern, original, name)
        weights[f"first_stage_model.{name}"] = value[..., None, None] if attention else value
    for name, value in pipeline.text_encoder.state_dict().items():
        name = name.removeprefix("text_model.")
        weights[f"cond_stage_model.transformer.text_model.{name}"] = value
    save_file({name: value.contiguous() for name, value in weights.items()}, file)
    return file


def save_lora(folder: Path, place: Path) -> Path:
    """LoRA weights of U-Net and text encoder of a pipeline's folder, as training scripts save them."""
    import peft

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    layers = {}
    for name, targets in (("unet", ["to_q", "to_v"]), ("text_encoder", ["q_proj", "v_proj"])):
        part = getattr(pipeline, name)
        part.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False))
        layers[f"{name}_lora_layers"] = convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(part))
    pipeline.save_lora_weights(place, **layers)
    return place


def prediction(generator, gradient=False):
    """What the denoiser makes of a noisy latent under a prompt, or the prompt's gradient of its sum of squares."""
    ids = torch.tensor([generator.vocabulary.encode(TEXT)])
    noisy = torch.randn(1, *generator.latent_shape, generator=torch.Generator().manual_seed(0))
    prompt = generator.vocabulary.embed(ids).requires_grad_(gradient)
    output = generator.predict(noisy, torch.tensor([700]), generator.condition(ids, prompt))
    return torch.autograd.grad(output.square().sum(), prompt)[0] if gradient else output
