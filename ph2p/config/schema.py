"""The configuration's schema: every key with its type, meaning and range. YAML files in `configs/` fill it in.

Hydra checks types and unknown keys against these classes; `ph2p.config` composes, and checks the ranges.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class SearchConfig:
    """Token swaps after the optimisation (`search.greedy_swaps`)."""

    share: float = 0.5  # of the budget that the selection leaves, in (0, 1)
    draws: int = 8  # N of the search's own fixed draws
    swaps: int = 32  # evaluated exactly in each round
    starts: int = 1  # best candidates that the search begins with, each a row of its own


@dataclass
class SelectionConfig:
    """How the winner is chosen among the candidates that were visited."""

    rule: str = "renderings"  # the winner has the rendering most like the picture; "loss": the lowest loss
    shortlist: int = 12  # distinct candidates that are scored, those with the lowest loss so far
    draws: int = 16  # N of the validation draws
    finalists: int = 3  # at most; best of the shortlist that are rendered and ranked by CLIP image similarity
    margin: float = 0.02  # a finalist's loss exceeds the best one's by this share at most; CLIP decides among equals
    steps: int = 15  # denoising steps of those renderings


@dataclass
class MethodConfig:
    """A method of prompt inversion. A new method is a new file in `configs/method/`."""

    name: str = MISSING  # as results and the default folder are labelled
    budget: int = MISSING  # denoiser samples an image, forward plus backward, everything but the final evaluation
    prompt_length: int = 12  # M, in [1, context length - 2]; more than words to find; ignored when `init` is a text
    init: str = "random"  # "random": tokens drawn from the allowed vocabulary; else the words to start from
    objective: str = "denoising"  # or "clip": one minus the CLIP similarity of prompt and picture
    timesteps: list[int] = field(default_factory=lambda: [500, 1000])  # t in [t_min, t_max)
    draws: int = 4  # N, drawn anew for every step of the optimiser
    smoothing: float = 0.0  # deviation of the prompt's shift in each draw, in units of the vocabulary's own
    steps: int = 1  # optimiser steps an epoch; the prompt is projected at the end of an epoch
    # N of fixed draws by which the best prompt so far is known, from which an epoch starts; 0: from the last one.
    judge_draws: int = 0
    projection_scales: list[float] = field(default_factory=lambda: [1.0])  # lengths of an epoch's move that it projects
    restarts: int = 1  # prompts an image, each from its own start, as extra rows of the batch
    microbatch: Any = "auto"  # denoiser rows at once; auto: all, and half as many whenever memory runs out
    snap: bool = True  # the next epoch starts from the projected embeddings
    straight_through: bool = False  # project at every evaluation, gradient to the continuous prompt
    optimizer: Any = None  # constructor call of a torch optimiser (`_target_`); null: keep the start
    search: SearchConfig | None = None
    selection: SelectionConfig = field(default_factory=SelectionConfig)


@dataclass
class DataConfig:
    """Which images."""

    name: str = MISSING  # part of the default folder's name
    targets: Any = MISSING  # constructor call of a `ph2p.data.Targets` (`_target_`), without its image size
    batch_size: int = 8  # images optimised at once; changes speed and memory, not the results
    shard: str = "0/1"  # i/n: only every n-th image from number i on, as for the task i of a job array


@dataclass
class FolderConfig(DataConfig):
    """Picture files."""

    path: str = MISSING  # a folder, searched with its subfolders, or one file


@dataclass
class WorldConfig(DataConfig):
    """Scenes of the embedded world, with ground truth."""

    count: int = 8  # scenes
    seed: int = 0  # of the scenes; the run's own is the top-level `seed`
    objects: int | None = None  # 1, 2, or null for either
    split: str = "test"  # train, val or test


@dataclass
class SampleConfig(DataConfig):
    """A data set of which a part may be taken."""

    count: int | None = None  # images; null: all
    seed: int = 0  # of the sample, 0 or greater; the run's own is the top-level `seed`


@dataclass
class CocoConfig(SampleConfig):
    """Microsoft COCO; its captions become references."""

    root: str = MISSING  # the folder that holds val2017/ and annotations/
    split: str = "val2017"  # or train2017


@dataclass
class CaptionedConfig(SampleConfig):
    """Pictures and captions of any kind; the captions become references."""

    root: str = MISSING  # the folder that the other paths start from
    captions: str = MISSING  # a .csv, .tsv or .jsonl file, or a folder of text files named like the pictures
    images: str = "."  # the folder that the file names in `captions` start from
    file_key: str = "file_name"  # column or key of the file name
    caption_key: str = "caption"  # column or key of the caption
    delimiter: str = ","  # between the columns of a .csv, one character


@dataclass
class ShardsConfig(SampleConfig):
    """Tar shards in the layout of WebDataset; the captions become references."""

    shards: str = MISSING  # a path with {000..009}, {a,b}, * or ? in it
    caption_key: str = "caption"  # of a .json; a .txt goes before


@dataclass
class TokensConfig:
    """Which words of the model's vocabulary a prompt may use (`ph2p.tokens.TokenFilter`); docs/vocabulary.md."""

    scripts: list[str] = field(default_factory=lambda: ["latin"])  # of all letters, as Unicode names them; []: any
    min_length: int = 2  # letters
    max_length: int = 20
    frequent: str | None = None  # file of words, a frequency list, say: only these; null: all
    protected: list[str] = field(default_factory=list)  # words that are allowed whatever the rules and lists say


@dataclass
class GeneratorConfig:
    """Which text-to-image model, and how it paints."""

    name: str = MISSING  # a label; `path` says which model it is
    path: str = MISSING  # a diffusers folder, a hub id or a single .safetensors checkpoint
    config: str | None = None  # of a single checkpoint: folder or hub id with its configuration; null: guess the hub id
    revision: str | None = None  # branch, tag or commit on the hub; null: the newest
    variant: str | None = None  # of the weight files, such as "fp16"
    cache_dir: str | None = None  # where downloads are kept; null: the hub's own cache
    local_files_only: bool = False  # true: never download
    omit: list[str] = field(default_factory=list)  # components to do without: [text_encoder_3] is SD 3 without T5
    lora: str | None = None  # LoRA weights: a .safetensors file, a folder or a hub id
    lora_scale: float = 1.0  # how much of them
    lora_revision: str | None = None  # branch, tag or commit on the hub; null: the newest
    image_size: int | None = None  # height = width in pixels; null: the model's own
    clip_skip: int | None = None  # CLIP layers passed over at the end, as in diffusers; null: the model's own
    offload: bool = False  # VAE and encoders without a gradient wait on the CPU while they are not needed
    vae_tiling: bool = False  # large pictures go through the VAE in tiles
    gradient_checkpointing: bool = False  # less memory for the denoiser, a third more time
    compile: bool = False  # torch.compile the denoiser: minutes at the start, faster then
    blocklist: str | None = "${package:models/words/blocklist.txt}"  # file of words that never appear in a prompt; null: none
    allowlist: str | None = None  # file of the only words that may appear, one a line; `tokens` is then passed over
    tokens: TokensConfig = field(default_factory=TokensConfig)
    steps: int = 30  # denoising steps of the pictures on the results page
    guidance_scale: float = 5.0  # of classifier-free guidance; 1 paints without
    guidance_rescale: float = 0.0  # arXiv 2305.08891, section 3.4


@dataclass
class ScorerConfig:
    """Which CLIP or SigLIP model ranks finalists and measures similarity; `method.objective=clip` descends on it."""

    name: str = MISSING  # a label; `path` says which model it is
    path: str = MISSING  # a folder of transformers or a hub id
    revision: str | None = None  # branch, tag or commit on the hub; null: the newest
    cache_dir: str | None = None  # where downloads are kept; null: the hub's own cache
    local_files_only: bool = False  # true: never download


@dataclass
class EvaluationConfig:
    """The final measurement, on draws that served neither the optimisation nor the selection."""

    draws: int = 64  # N
    timesteps: list[int] = field(default_factory=lambda: [500, 1000])  # the same for all methods
    renders: int = 3  # pictures painted from the found prompt, and from the true caption where there is one


@dataclass
class Config:
    """The whole configuration."""

    data: DataConfig = MISSING
    generator: GeneratorConfig = MISSING
    scorer: ScorerConfig = MISSING
    method: MethodConfig = MISSING
    trainer: Any = MISSING  # arguments of lightning.Trainer
    logger: Any = None  # constructor call of a Lightning logger, or null
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = 0  # of all draws and starting tokens, in [0, 2**62)
    name: str = MISSING  # results go to <output>/<name>
    output: str = "outputs"  # the folder of all runs
    resume: str = "auto"  # auto: refuse a folder whose configuration differs; force: continue all the same
    ckpt_path: str | None = None  # a checkpoint from which the batch in it goes on, such as one of another folder
