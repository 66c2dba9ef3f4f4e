"""The recipe of the embedded model: everything in its folder, from nothing but composed scenes, by one command.

    python -m ph2p.tiny.pretrain --work outputs/pretrain --weights outputs/weights

Every stage writes a checkpoint as it goes and is skipped once its part stands in the weights folder: the same command
continues after an interruption, with the batches that would have come. `--stages` picks some of them; `report`
measures what stands in the folder. `--so-far FOLDER` trains nothing and writes the denoiser of the last checkpoint,
with the parts that are finished, into a folder of its own. `--start FOLDER` begins with another model: of its judge,
denoiser and image tower those of `--stages` are trained on, everything else is taken over as it is. A `--work` folder
belongs to one weights folder: checkpoints and repainted pictures are kept in it.
"""

import argparse
import shutil
import time
from pathlib import Path

import lightning as L
import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import VisionTextDualEncoderModel

from ph2p.tiny.bars import measure, show
from ph2p.tiny.recipe.clip import ClipStage, dual_encoder, load_text_encoder
from ph2p.tiny.recipe.image_tower import ClipImageStage, save_clip
from ph2p.tiny.recipe.judge import JudgeStage, load_judge, save_judge
from ph2p.tiny.recipe.scenes import load_scenes
from ph2p.tiny.recipe.stage import STAGES, Stage, fit, save_half, whole
from ph2p.tiny.recipe.tokenizer import load_tokenizer, train_tokenizer
from ph2p.tiny.recipe.unet import UNetStage, save_pipeline
from ph2p.tiny.recipe.vae import VaeStage, patch_code
from ph2p.world.scenes import Scene

Scenes = list[Scene]


def pretrain(args: argparse.Namespace) -> None:
    """Run the chosen stages in order; a stage whose part stands in the weights folder is skipped."""
    args.work.mkdir(parents=True, exist_ok=True)
    args.weights.mkdir(parents=True, exist_ok=True)
    L.seed_everything(args.seed, verbose=False)
    started = time.time()
    if args.so_far or not set(args.stages) <= {"report"}:
        scenes, pictures = load_scenes(args.work, args.scenes, args.seed)
    if args.so_far:
        return write_so_far(args, scenes, pictures)
    if args.start:
        take_over(args)
    for name, (part, run) in PARTS.items():
        if name in args.stages and not (args.weights / part).exists():
            run(args, scenes, pictures)
    print(f"stages {', '.join(args.stages)}: {(time.time() - started) / 60:.1f} minutes", flush=True)
    if "report" in args.stages:
        show(measure(args.weights))


def take_over(args: argparse.Namespace) -> None:
    """Copy the parts of `--start` that are not trained on, where the weights folder lacks them."""
    trained = {part for name, (part, _) in PARTS.items() if name in args.stages and name in TRAINED_ON}
    for part in (*(part for part, _ in PARTS.values()), "scheduler"):
        if part not in trained and not (args.weights / part).exists():
            with whole(args.weights / part) as folder:
                shutil.copytree(args.start / part, folder, dirs_exist_ok=True)
    for name in ("words.txt", "model_index.json"):
        shutil.copy(args.start / name, args.weights)


def run_tokenizer(args: argparse.Namespace, scenes: Scenes, pictures: np.ndarray) -> None:
    tokenizer, words = train_tokenizer(scenes, args.seed)
    (args.weights / "words.txt").write_text("\n".join(words) + "\n")
    with whole(args.weights / "tokenizer") as folder:
        tokenizer.save_pretrained(folder)
    print(f"tokenizer: {len(tokenizer)} tokens, {len(words)} words", flush=True)


def run_vae(args: argparse.Namespace, scenes: Scenes, pictures: np.ndarray) -> None:
    stage = VaeStage(args.seed, args.vae_steps, pictures)
    train(stage, args)
    save_half(stage.model.cpu(), args.weights / "vae")


def run_clip(args: argparse.Namespace, scenes: Scenes, pictures: np.ndarray) -> None:
    stage = ClipStage(args.seed, args.clip_steps, scenes, pictures, load_tokenizer(args.weights))
    train(stage, args)
    save_half(stage.model.text_model, args.weights / "text_encoder")


def run_judge(args: argparse.Namespace, scenes: Scenes, pictures: np.ndarray) -> None:
    stage = JudgeStage(args.seed, args.judge_steps, scenes, pictures, load_judge(args.start) if args.start else None)
    train(stage, args)
    save_judge(stage.model, args.weights)


def run_unet(args: argparse.Namespace, scenes: Scenes, pictures: np.ndarray) -> None:
    stage = unet_stage(args, scenes, pictures)
    train(stage, args)
    save_pipeline(stage.average.module, args.weights)


def run_clip_image(args: argparse.Namespace, scenes: Scenes, pictures: np.ndarray) -> None:
    parts = args.weights, earlier_clip(args), args.work / ClipImageStage.name
    stage = ClipImageStage(args.seed, args.clip_image_steps, scenes, pictures, *parts)
    train(stage, args)
    save_clip(stage.model, args.weights)


PARTS = {  # stage: the folder of what it makes, and what runs it
    "tokenizer": ("tokenizer", run_tokenizer),
    "vae": ("vae", run_vae),
    "clip": ("text_encoder", run_clip),
    "judge": ("judge", run_judge),
    "unet": ("unet", run_unet),
    "clip_image": ("clip", run_clip_image),
}


TRAINED_ON = ("judge", "unet", "clip_image")  # the stages that can begin with what `--start` has


def train(stage: Stage, args: argparse.Namespace) -> None:
    fit(stage, args.work, args.accelerator, args.precision)


def unet_stage(args: argparse.Namespace, scenes: Scenes, pictures: np.ndarray) -> UNetStage:
    vae = AutoencoderKL.from_pretrained(args.weights / "vae", torch_dtype=torch.float32)
    towers = load_tokenizer(args.weights), load_text_encoder(args.weights)
    stage = UNetStage(args.seed, args.unet_steps, scenes, pictures, patch_code(vae), *towers)
    if args.start:
        earlier = UNet2DConditionModel.from_pretrained(args.start / "unet", torch_dtype=torch.float32)
        stage.model["unet"].load_state_dict(earlier.state_dict())
        stage.model["text_encoder"].requires_grad_(False)  # CLIP's image tower and what was said of words stay true
        stage.average.module.load_state_dict(stage.model.state_dict())
    return stage


def earlier_clip(args: argparse.Namespace) -> VisionTextDualEncoderModel:
    """Both towers as the contrastive stage left them, or those of `--start`."""
    if args.start:
        return VisionTextDualEncoderModel.from_pretrained(args.start / "clip", dtype=torch.float32)
    model = dual_encoder(load_tokenizer(args.weights))
    state = torch.load(args.work / "clip" / "last.ckpt", weights_only=True)["state_dict"]
    towers = {name: value for name, value in state.items() if name.startswith("model.")}
    model.load_state_dict({name.removeprefix("model."): value for name, value in towers.items()})
    return model


def write_so_far(args: argparse.Namespace, scenes: Scenes, pictures: np.ndarray) -> None:
    """Write `--so-far`: what is finished, the averaged denoiser of the last checkpoint, and the contrastive CLIP."""
    stage = unet_stage(args, scenes, pictures)
    checkpoint = torch.load(args.work / stage.name / "last.ckpt", weights_only=True, map_location="cpu")
    stage.load_state_dict(checkpoint["state_dict"])
    shutil.copytree(args.weights, args.so_far)
    save_pipeline(stage.average.module, args.so_far)
    save_clip(earlier_clip(args), args.so_far)
    print(f"{args.so_far}: the denoiser after {checkpoint['global_step']} of {args.unet_steps} steps", flush=True)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("outputs/pretrain"), help="scenes and checkpoints")
    parser.add_argument("--weights", type=Path, required=True, help="the diffusers folder to write")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--so-far", type=Path, help="a new folder for the denoiser of the last checkpoint")
    parser.add_argument("--start", type=Path, help="a finished folder that the stages train on")
    parser.add_argument("--scenes", type=int, default=100_000)
    parser.add_argument("--vae-steps", type=int, default=6_000)
    parser.add_argument("--clip-steps", type=int, default=1_000)
    parser.add_argument("--judge-steps", type=int, default=5_000)
    parser.add_argument("--unet-steps", type=int, default=12_000)
    parser.add_argument("--clip-image-steps", type=int, default=6_000)
    parser.add_argument(
        "--precision", choices=("bf16-mixed", "32-true"), default="bf16-mixed", help="32-true: CPUs without bfloat16"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    return parser.parse_args(argv)


if __name__ == "__main__":
    pretrain(parse())
