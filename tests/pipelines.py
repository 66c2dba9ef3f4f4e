"""Pipelines of the real classes with small random weights, for the tests."""

import inspect
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

WORDS = ["a", "red", "green", "blue", "square", "circle", "above", "below", "small", "dog", "dogs", "café"]
LENGTH = 12  # context length L
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def save_tokenizer(folder: Path, pad_token: str = EOS) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer of the bytes and `WORDS`, as vocab.json and merges.txt (OpenAI's layout)."""
    characters = [character_of(byte) for byte in range(256)]
    vocabulary, merges = characters + [c + "</w>" for c in characters], []
    for word in WORDS:
        letters = [character_of(byte) for byte in word.encode()]
        first, *rest = _apply([*letters[:-1], letters[-1] + "</w>"], merges)
        for piece in rest:
            merges.append((first, piece))
            first += piece
            vocabulary.append(first)
    vocabulary += [BOS, EOS]
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "bos_token": BOS,
        "eos_token": EOS,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": pad_token, "unk_token": EOS}))
    return CLIPTokenizer.from_pretrained(folder)


def _apply(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Byte-pair encoding of one word: the merges in the order they were learned."""
    for pair in merges:
        at = 0
        while at + 1 < len(pieces):
            if (pieces[at], pieces[at + 1]) == pair:
                pieces[at : at + 2] = ["".join(pair)]
            at += 1
    return pieces


def character_of(byte: int) -> str:
    """The character that byte-level BPE writes for a byte (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in printable:
        return chr(byte)
    return chr(256 + [b for b in range(256) if b not in printable].index(byte))


def text_config(tokenizer: CLIPTokenizer) -> dict:
    return dict(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=8,
    )


def save_pipeline(folder: Path, *, pad_token: str = EOS, scheduler=DDIMScheduler, **scheduler_options) -> Path:
    """A StableDiffusionPipeline folder: 16-pixel images, 4x8x8 latents, L = 12, D = 16."""
    torch.manual_seed(0)
    tokenizer = save_tokenizer(folder.parent / f"{folder.name}-tokenizer", pad_token)
    options = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)
    if "clip_sample" in inspect.signature(scheduler).parameters:
        options["clip_sample"] = False  # else StableDiffusionPipeline warns and changes it
    StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(CLIPTextConfig(**text_config(tokenizer))),
        vae=_vae(),
        unet=_unet(),
        scheduler=scheduler(**options | scheduler_options),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """A CLIPModel folder for 16-pixel images, with tokenizer and image processor."""
    torch.manual_seed(1)
    tokenizer = save_tokenizer(folder)
    vision = dict(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        projection_dim=8,
    )
    config = CLIPConfig(text_config=text_config(tokenizer), vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)
    return folder


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        sample_size=16,
        scaling_factor=0.7,
    )


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
    )
