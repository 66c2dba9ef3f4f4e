"""One closure with gradients of Stable Diffusion 1.5 or SDXL at true size: seconds a denoiser sample, peak memory.

The sizes are those of the published models, the weights random: they cost the same time and memory.

python benchmarks/full_size.py --model sd15 --image-size 128 --samples 1 2
python benchmarks/full_size.py --model sdxl --image-size 1024 --samples 1 4 8 --dtype bfloat16 --device cuda
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ph2p.inversion.draws import make_draws
from ph2p.inversion.objectives import denoising_loss
from ph2p.models.generators import Generator
from ph2p.models.generators.families import family_of

WORDS = ("red", "dog", "sky", "car", "sun", "sea", "cat", "hat")  # one prompt of eight tokens
TOKENS, LENGTH = 49408, 77  # of CLIP's vocabulary and context
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
SCHEDULE = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1)
CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768)
CLIP_BIG_G = dict(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    projection_dim=1280,
    hidden_act="gelu",
)
UNET_15 = dict(sample_size=64, block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8)
UNET_XL = dict(
    sample_size=128,
    block_out_channels=(320, 640, 1280),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=(1, 2, 10),
    attention_head_dim=(5, 10, 20),
    cross_attention_dim=2048,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)
VAE = dict(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
    latent_channels=4,
)


def make_tokenizer() -> CLIPTokenizer:
    """A tokenizer of CLIP's size that knows a few words; the other tokens are never reached."""
    letters = sorted(set("".join(WORDS)))
    table, merges = [*letters, *(f"{letter}</w>" for letter in letters)], []
    for first, second, third in WORDS:
        merges += [(first, second), (first + second, f"{third}</w>")]
        table += [first + second, f"{first}{second}{third}</w>"]
    table = list(dict.fromkeys(table))
    table += [f"<unused{k}>" for k in range(TOKENS - 2 - len(table))] + [BOS, EOS]
    lines = "\n".join(" ".join(pair) for pair in dict.fromkeys(merges))
    config = dict(tokenizer_class="CLIPTokenizer", model_max_length=LENGTH, bos_token=BOS, eos_token=EOS)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "vocab.json").write_text(json.dumps({token: k for k, token in enumerate(table)}))
        (place / "merges.txt").write_text(f"#version: 0.2\n{lines}\n")
        (place / "tokenizer_config.json").write_text(json.dumps(config | dict(pad_token=EOS, unk_token=EOS)))
        return CLIPTokenizer.from_pretrained(folder)


def make_generator(model: str, image_size: int, dtype: torch.dtype, device: str) -> Generator:
    """The model at its true size with random weights; the VAE in float32."""
    tokenizer = make_tokenizer()
    ids = dict(vocab_size=TOKENS, bos_token_id=TOKENS - 2, eos_token_id=TOKENS - 1, pad_token_id=TOKENS - 1)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        unet = diffusers.UNet2DConditionModel(**(UNET_XL if model == "sdxl" else UNET_15))
        parts = dict(tokenizer=tokenizer, text_encoder=CLIPTextModel(CLIPTextConfig(**CLIP_L, **ids)))
        if model == "sdxl":
            second = CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_BIG_G, **ids))
            parts |= dict(tokenizer_2=tokenizer, text_encoder_2=second, add_watermarker=False)
        else:
            parts |= dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        torch.set_default_dtype(torch.float32)
        vae = diffusers.AutoencoderKL(**VAE, sample_size=image_size, scaling_factor=0.18215)
    scheduler = diffusers.DDIMScheduler(**SCHEDULE)
    name = "StableDiffusionXLPipeline" if model == "sdxl" else "StableDiffusionPipeline"
    pipeline = getattr(diffusers, name)(**parts, unet=unet, vae=vae, scheduler=scheduler)
    family = family_of(model, {"_class_name": name})
    return family(pipeline, words={}, image_size=(image_size, image_size)).place(device)


def closure(generator: Generator, latents: torch.Tensor, samples: int) -> float:
    """Seconds of one loss and gradient of one prompt on `samples` draws."""
    vocabulary, started = generator.vocabulary, time.perf_counter()
    ids = torch.tensor([vocabulary.encode(" ".join(WORDS))], device=generator.device)
    prompt = vocabulary.embed(ids).requires_grad_()
    draws = make_draws(0, ["image"], ("speed",), samples, (500, 1000), generator.latent_shape).to(generator.device)
    loss = denoising_loss(generator, latents, generator.condition(ids, prompt), draws)
    (gradient,) = torch.autograd.grad(loss.sum(), prompt)
    assert torch.isfinite(gradient).all() and gradient.any()  # waits for the device, too
    return time.perf_counter() - started


def peak_memory(device: str) -> float:
    """GiB, of the device, or of the process since its start."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return torch.cuda.max_memory_allocated() / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("sd15", "sdxl"), default="sd15")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--samples", type=int, nargs="+", default=[1], help="denoiser samples at once (B x N)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing of the denoiser")
    args = parser.parse_args()
    generator = make_generator(args.model, args.image_size, getattr(torch, args.dtype), args.device)
    if args.checkpointing:
        generator.denoiser.enable_gradient_checkpointing()
    count = sum(weight.numel() for weight in generator.denoiser.parameters()) / 1e6
    print(f"{args.model}: denoiser of {count:.0f} M parameters, {args.dtype}, {args.image_size} pixels, {args.device}")
    latents = generator.encode_images(torch.rand(1, 3, args.image_size, args.image_size))
    closure(generator, latents, args.samples[0])  # warm up
    for samples in args.samples:
        seconds = closure(generator, latents, samples) / samples
        peak = peak_memory(args.device)
        print(
            f"{samples} samples: {seconds:.3f} s a sample, forward and backward; peak memory {peak:.1f} GiB", flush=True
        )


if __name__ == "__main__":
    main()
