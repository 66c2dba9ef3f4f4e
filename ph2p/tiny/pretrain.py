"""The recipe of the embedded model: tokenizer, CLIP, VAE and U-Net from nothing but drawn scenes.

    python -m ph2p.tiny.pretrain --work outputs/pretrain --weights ph2p/tiny/weights

Every stage writes a checkpoint as it goes and is skipped once its part stands in the weights folder, so the
same command continues after an interruption. `--stages` picks some of them; `report` measures the result.
"""

import argparse
import time
from pathlib import Path

import lightning as L
import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel

from ph2p.tiny.bars import measure, show
from ph2p.tiny.recipe.clip import ClipStage, clip_config, load_text_encoder, text_tower
from ph2p.tiny.recipe.image_tower import ClipImageStage, save_clip
from ph2p.tiny.recipe.scenes import load_scenes
from ph2p.tiny.recipe.stage import STAGES, Stage, fit, save_half
from ph2p.tiny.recipe.tokenizer import load_tokenizer, train_tokenizer
from ph2p.tiny.recipe.unet import UNetStage, object_patches, save_pipeline
from ph2p.tiny.recipe.vae import VaeStage, encode_all
from ph2p.world import scenes as world

Scenes = list[world.Scene]


def pretrain(args: argparse.Namespace) -> None:
    """Run the chosen stages in order; a stage whose part stands in the weights folder is skipped."""
    args.work.mkdir(parents=True, exist_ok=True)
    L.seed_everything(args.seed, verbose=False)
    started = time.time()
    if not set(args.stages) <= {"report"}:
        scenes, pictures = load_scenes(args.work, args.scenes, args.seed)
    for name, (part, run) in PARTS.items():
        again = args.another_round and name in ANOTHER_ROUND
        if name in args.stages and (again or not (args.weights / part).exists()):
            run(args, scenes, pictures)
    print(f"stages {', '.join(args.stages)}: {(time.time() - started) / 60:.1f} minutes", flush=True)
    if "report" in args.stages:
        show(measure(args.weights))


def run_tokenizer(args: argparse.Namespace, scenes: Scenes, pictures: np.ndarray) -> None:
    tokenizer, words = train_tokenizer(scenes, args.seed)
    tokenizer.save_pretrained(args.weights / "tokenizer")
    (args.weights / "words.txt").write_text("\n".join(words) + "\n")
    print(f"tokenizer: {len(tokenizer)} tokens, {len(words)} words", flush=True)


def run_clip(args: argparse.Namespace, scenes: Scenes, pictures: np.ndarray) -> None:
    stage = ClipStage(args.seed, args.clip_steps, scenes, pictures, load_tokenizer(args.weights))
    train(stage, args)
    save_half(text_tower(stage.model), args.weights / "text_encoder")


def run_vae(args: argparse.Namespace, scenes: Scenes, pictures: np.ndarray) -> None:
    stage = VaeStage(args.seed, args.vae_steps, pictures)
    train(stage, args)
    save_half(stage.model.cpu(), args.weights / "vae")


def run_unet(args: argparse.Namespace, scenes: Scenes, pictures: np.ndarray) -> None:
    vae = AutoencoderKL.from_pretrained(args.weights / "vae", torch_dtype=torch.float32)
    latents = encode_all(vae, pictures, args.device) * vae.config.scaling_factor
    parts = object_patches(pictures), load_tokenizer(args.weights), load_text_encoder(args.weights)
    stage = UNetStage(args.seed, args.unet_steps, scenes, latents, *parts)
    if args.another_round:
        earlier = UNet2DConditionModel.from_pretrained(args.weights / "unet", torch_dtype=torch.float32)
        stage.model["unet"].load_state_dict(earlier.state_dict())
        stage.average.module.load_state_dict(stage.model.state_dict())
    train(stage, args)
    save_pipeline(stage.average.module, args.weights)


def run_clip_image(args: argparse.Namespace, scenes: Scenes, pictures: np.ndarray) -> None:
    stage = ClipImageStage(args.seed, args.clip_image_steps, scenes, pictures, args.weights, earlier_clip(args))
    train(stage, args)
    save_clip(stage.model, args.weights)


PARTS = {  # stage: the folder of what it makes, and what runs it
    "tokenizer": ("tokenizer", run_tokenizer),
    "clip": ("text_encoder", run_clip),
    "vae": ("vae", run_vae),
    "unet": ("unet", run_unet),
    "clip_image": ("clip", run_clip_image),
}
ANOTHER_ROUND = ("unet", "clip_image")  # stages that can train on what stands in the weights folder


def train(stage: Stage, args: argparse.Namespace) -> None:
    fit(stage, args.work, args.accelerator, args.precision)


def earlier_clip(args: argparse.Namespace) -> CLIPModel:
    """Both towers as the contrastive stage left them, or, for another round, as they stand in the weights folder."""
    if args.another_round:
        return CLIPModel.from_pretrained(args.weights / "clip", dtype=torch.float32)
    model = CLIPModel(clip_config(load_tokenizer(args.weights)))
    state = torch.load(args.work / "clip" / "last.ckpt", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    return model


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("outputs/pretrain"), help="scenes and checkpoints")
    parser.add_argument("--weights", type=Path, required=True, help="the diffusers folder to write")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--scenes", type=int, default=48_000)
    parser.add_argument("--clip-steps", type=int, default=1_400)
    parser.add_argument("--vae-steps", type=int, default=1_400)
    parser.add_argument("--unet-steps", type=int, default=16_000)
    parser.add_argument("--clip-image-steps", type=int, default=700)
    parser.add_argument(
        "--another-round",
        action="store_true",
        help="train the U-Net and text tower that stand in the weights folder on",
    )
    parser.add_argument(
        "--precision", choices=("bf16-mixed", "32-true"), default="bf16-mixed", help="32-true: CPUs without bfloat16"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    args = parser.parse_args(argv)
    args.device = "cuda" if args.accelerator == "gpu" else "cpu"
    return args


if __name__ == "__main__":
    pretrain(parse())
