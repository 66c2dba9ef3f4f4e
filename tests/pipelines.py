"""Pipelines of the real classes with small random weights, for the tests."""

import inspect
import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)
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


def save_t5_tokenizer(folder: Path) -> T5Tokenizer:
    """A T5 unigram tokenizer of letters and `WORDS`, some of them capitalised, as tokenizer.json."""
    letters = sorted({letter for word in WORDS for letter in word} | set("RD"))
    words = [*WORDS, "Red", "Dog"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -5.0)]
    pieces += [(f"▁{word}", -2.0 - 0.01 * k) for k, word in enumerate(words) if len(word) > 1]
    pieces += [("▁a", -2.5), ("dog", -3.0), *((letter, -10.0) for letter in letters)]
    T5Tokenizer(vocab=pieces, extra_ids=3).save_pretrained(folder)
    return T5Tokenizer.from_pretrained(folder)


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
    options = dict(SD_SCHEDULE)
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


def _vae(**options) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        sample_size=16,
        scaling_factor=0.7,
        **options,
    )


def _unet(**options) -> UNet2DConditionModel:
    config = dict(
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
    return UNet2DConditionModel(**config | options)


# --- families ----------------------------------------------------------------------------------------------------


def save_family(folder: Path, name: str) -> Path:
    """A pipeline folder of a family: 16-pixel images (FLUX.1 names no size), 4x8x8 latents, D_1 = 16, T5 D = 32."""
    torch.manual_seed(0)
    parts = folder.parent / f"{folder.name}-parts"
    FAMILY_BUILDERS[name](parts).save_pretrained(folder)
    return folder


def stable_diffusion_2(parts: Path) -> DiffusionPipeline:
    """As SD 2.1: v-prediction, GELU, padding with "!", more attention heads in deeper blocks."""
    tokenizer = save_tokenizer(parts / "tokenizer", pad_token="!")
    encoder = CLIPTextModel(CLIPTextConfig(**text_config(tokenizer) | dict(hidden_act="gelu", num_hidden_layers=3)))
    return StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=_vae(),
        unet=_unet(attention_head_dim=(2, 4), use_linear_projection=True),
        scheduler=DDIMScheduler(**SD_SCHEDULE, prediction_type="v_prediction", clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl(parts: Path) -> DiffusionPipeline:
    unet = _unet(
        cross_attention_dim=16 + 12,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 8,
    )
    return StableDiffusionXLPipeline(
        **_clip_pair(parts, CLIPTextModel),
        vae=_vae(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(**SD_SCHEDULE),
        add_watermarker=False,
    )


def stable_diffusion_3(parts: Path) -> DiffusionPipeline:
    tokenizer = save_t5_tokenizer(parts / "t5")
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    )
    return StableDiffusion3Pipeline(
        **_clip_pair(parts, CLIPTextModelWithProjection),
        tokenizer_3=tokenizer,
        text_encoder_3=_t5(tokenizer),
        vae=_vae(shift_factor=0.3, use_quant_conv=False, use_post_quant_conv=False),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def flux(parts: Path, guidance_embeds: bool = True) -> DiffusionPipeline:
    clip, tokenizer = save_tokenizer(parts / "clip"), save_t5_tokenizer(parts / "t5")
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(2, 2, 4),
    )
    return FluxPipeline(
        tokenizer=clip,
        text_encoder=CLIPTextModel(CLIPTextConfig(**text_config(clip))),
        tokenizer_2=tokenizer,
        text_encoder_2=_t5(tokenizer),
        vae=_vae(shift_factor=0.3, use_quant_conv=False, use_post_quant_conv=False),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=guidance_embeds),
    )


def flux_schnell(parts: Path) -> DiffusionPipeline:
    return flux(parts, guidance_embeds=False)


def pixart(parts: Path) -> DiffusionPipeline:
    tokenizer = save_t5_tokenizer(parts / "t5")
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        caption_channels=32,
    )
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=_t5(tokenizer),
        vae=_vae(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    )


def _clip_pair(parts: Path, first_class: type) -> dict:
    """Two text encoders over one vocabulary, of widths 16 and 12; their tokenizers pad differently, as SDXL's do."""
    first, second = save_tokenizer(parts / "first"), save_tokenizer(parts / "second", pad_token="!")
    config = text_config(second) | dict(hidden_size=12, hidden_act="gelu")
    return dict(
        tokenizer=first,
        text_encoder=first_class(CLIPTextConfig(**text_config(first))),
        tokenizer_2=second,
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**config)),
    )


def _t5(tokenizer: T5Tokenizer) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer) + 5,  # T5's table has more rows than its tokenizer has tokens
        d_model=32,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return T5EncoderModel(config)


SD_SCHEDULE = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)
FAMILY_BUILDERS = dict(
    sd2=stable_diffusion_2,
    sdxl=stable_diffusion_xl,
    sd3=stable_diffusion_3,
    flux=flux,
    flux_schnell=flux_schnell,
    pixart=pixart,
)
