"""The configuration's schema: every key with its type, meaning and range. YAML files in `configs/` fill it in.

Hydra checks types and unknown keys against these classes; `validate` checks ranges. Both give one line.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ph2p.errors import UserError

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")  # of the frozen models
PACKAGE = Path(__file__).resolve().parent


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
    image_size: int | None = None  # height = width in pixels; null: the model's own
    clip_skip: int | None = None  # CLIP layers passed over at the end, as in diffusers; null: the model's own
    offload: bool = False  # VAE and encoders without a gradient wait on the CPU while they are not needed
    vae_tiling: bool = False  # large pictures go through the VAE in tiles
    gradient_checkpointing: bool = False  # less memory for the denoiser, a third more time
    compile: bool = False  # torch.compile the denoiser: minutes at the start, faster then
    blocklist: str | None = "${package:words/blocklist.txt}"  # file of words that never appear in a prompt; null: none
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


@dataclass(frozen=True)
class Plan:
    """What a budget buys: epochs of the optimiser and rounds of the search."""

    epochs: int
    rounds: int


def plan(method: MethodConfig) -> Plan:
    """Share a method's budget between optimisation, search and selection.

    The selection costs shortlist x draws forward samples, and finalists x steps x 2 for the renderings (twice
    for the guidance); an evaluation of the objective N forward and N backward samples a restart, judging the start or
    one of an epoch's projections `judge_draws` forward samples a restart. A CLIP evaluation is charged like one of
    the denoiser, so that methods of the same budget take the same number of steps.
    Raises UserError when the budget does not pay for one epoch, or for the selection where nothing is optimised.
    """
    choice, search = method.selection, method.search
    epoch_cost, judged = 0, method.judge_draws * method.restarts  # samples of judging a prompt a row
    if method.optimizer is not None:
        evaluations = method.steps * method.optimizer.get("max_eval", 1)
        epoch_cost = 2 * method.draws * method.restarts * evaluations + judged * len(method.projection_scales)
    selection = choice.shortlist * choice.draws + 2 * choice.finalists * choice.steps + judged
    rest, enough, rounds = method.budget - selection, selection + epoch_cost, 0
    if search:
        start = choice.shortlist * search.draws + search.starts * search.draws
        round_cost = search.starts * search.draws * (2 + search.swaps)
        rounds = max(0, int((rest * search.share - start) // round_cost))
        rest -= start + rounds * round_cost
        # A larger budget buys more rounds too; with this much an epoch is left whether there are any or not.
        enough = selection + max(start + epoch_cost, math.ceil(epoch_cost / (1 - search.share)))
    if rest < epoch_cost:
        raise UserError(f"method.budget={method.budget}: too small for this method; give {enough} samples or more")
    return Plan(rest // epoch_cost if epoch_cost else 0, rounds)


# --- composing and checking --------------------------------------------------------------------------------------


def config_dir() -> Path:
    """The folder of the YAML files: beside the package in a checkout, inside it when installed."""
    inside = PACKAGE / "configs"
    return inside if inside.exists() else PACKAGE.parent / "configs"


def register() -> None:
    """Make the schema and the `${package:...}` resolver known to Hydra."""
    OmegaConf.register_new_resolver("package", lambda path: str(PACKAGE / path), replace=True)
    store = ConfigStore.instance()
    store.store("schema", Config)
    store.store("folder_schema", FolderConfig, group="data")
    store.store("world_schema", WorldConfig, group="data")
    store.store("coco_schema", CocoConfig, group="data")
    store.store("captioned_schema", CaptionedConfig, group="data")
    store.store("shards_schema", ShardsConfig, group="data")
    store.store("schema", GeneratorConfig, group="generator")
    store.store("schema", ScorerConfig, group="scorer")
    store.store("schema", MethodConfig, group="method")


def load_config(overrides: list[str]) -> DictConfig:
    """Compose and validate the configuration; raises UserError, one line, for anything wrong in it."""
    return check(compose_config(overrides))


def compose_config(overrides: list[str]) -> DictConfig:
    """The configuration as composed, its interpolations and missing values as they stand; raises UserError."""
    register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return compose("train", overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error)) from error
    except ValueError as error:  # group=null, and Hydra does not say which
        nulls = [word for word in overrides if word.endswith("=null") and "." not in word]
        raise UserError(f"{' '.join(nulls)}: {_one_line(error)}") from error


def check(cfg: DictConfig) -> DictConfig:
    """Resolve a composed configuration and validate it; raises UserError, one line, for anything wrong in it."""
    try:
        OmegaConf.resolve(cfg)
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error)) from error
    validate(cfg)
    return cfg


def _one_line(error: Exception) -> str:
    """Keep what Hydra says of a wrong key or value, and drop its advice on debugging."""
    root = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    lines = [line.strip() for line in str(error).splitlines() + str(root).splitlines() if line.strip()]
    advice = ("object_type", "reference_type", "Set the", "Config search path", "provider=")
    kept = [line for line in dict.fromkeys(lines) if not line.startswith(advice) and not line.endswith("schema")]
    return "; ".join(kept) + " (python train.py --help lists the keys)"


def validate(cfg: DictConfig) -> None:
    """Check the ranges of all values; raises UserError naming the key and what it may be."""
    for key in sorted(OmegaConf.missing_keys(cfg)):
        raise UserError(f"{key}: has no value; give {key}=...")
    if not isinstance(cfg.method.optimizer, DictConfig | None):
        raise UserError(f"method.optimizer={cfg.method.optimizer}: give its keys, as in method.optimizer.lr=0.1")
    positive = ["data.batch_size", "generator.steps", "evaluation.draws", "evaluation.renders"]
    positive += [f"method.{key}" for key in ("budget", "prompt_length", "draws", "steps", "restarts")]
    positive += ["method.optimizer.max_eval"] if cfg.method.optimizer else []
    positive += [f"method.selection.{key}" for key in ("shortlist", "draws", "finalists", "steps")]
    if cfg.method.search:
        positive += [f"method.search.{key}" for key in ("draws", "swaps", "starts")]
        if not 0 < cfg.method.search.share < 1:
            raise UserError(f"method.search.share={cfg.method.search.share}: give a number in (0, 1)")
    if not cfg.method.selection.margin >= 0:
        raise UserError(f"method.selection.margin={cfg.method.selection.margin}: give a number of at least 0")
    for key in positive:
        value = OmegaConf.select(cfg, key, default=1)
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{key}={value}: give a whole number of at least 1")
    method = cfg.method
    judged = method.optimizer and method.snap and not method.straight_through
    if method.judge_draws < 0 or (method.judge_draws and not judged):
        raise UserError(
            f"method.judge_draws={method.judge_draws}: give 0, or a number above it where an optimizer's epochs end "
            "in a projection (method.snap=true, method.straight_through=false)"
        )
    if not method.projection_scales or not all(0 < scale < math.inf for scale in method.projection_scales):
        raise UserError(f"method.projection_scales={method.projection_scales}: give numbers above 0")
    if len(method.projection_scales) > 1 and not method.judge_draws:
        raise UserError(f"method.projection_scales={method.projection_scales}: more than one needs method.judge_draws")
    for key in ("method.timesteps", "evaluation.timesteps"):
        window = OmegaConf.select(cfg, key)
        if len(window) != 2 or not 0 <= window[0] < window[1]:
            raise UserError(f"{key}={window}: give [first, last) with 0 <= first < last")
    delimiter = OmegaConf.select(cfg, "data.delimiter", default=",")
    if len(delimiter) != 1:
        raise UserError(f"data.delimiter={delimiter}: give one character")
    for key, choices in {"method.objective": ("denoising", "clip"), "resume": ("auto", "force")}.items():
        value = OmegaConf.select(cfg, key)
        if value not in choices:
            raise UserError(f"{key}={value}: choose one of {', '.join(choices)}")
    for key, least in {"generator.image_size": 8, "generator.clip_skip": 0}.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and value < least:
            raise UserError(f"{key}={value}: give a whole number of at least {least}, or null")
    if not 0 <= cfg.seed < 2**62:
        raise UserError(f"seed={cfg.seed}: give a whole number in [0, 2**62)")
    parse_shard(cfg.data.shard)
    rows = cfg.method.microbatch
    if rows != "auto" and (not isinstance(rows, int) or isinstance(rows, bool) or rows < 1):
        raise UserError(f"method.microbatch={rows}: give auto or a whole number of at least 1")
    if not cfg.name or "/" in cfg.name or cfg.name in (".", ".."):
        raise UserError(f"name={cfg.name}: give a folder name without slashes")
    _validate_trainer(cfg.trainer)
    plan(cfg.method)


def _validate_trainer(trainer: DictConfig) -> None:
    """Leave to Lightning what it checks itself; refuse what the inverter decides or cannot do."""
    ours = {"max_epochs", "callbacks", "logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"}
    ours |= {"strategy", "plugins", "use_distributed_sampler"}
    for key in sorted(ours & set(trainer)):
        raise UserError(f"trainer.{key}: leave it out; the run sets it itself")
    precision = str(trainer.get("precision"))
    if precision.startswith(("16", "fp16", "half")):
        raise UserError(
            f"trainer.precision={precision}: float16 gradients underflow, and loss scaling hides the losses from the "
            "line search; give bf16-mixed, bf16-true or 32-true"
        )
    if precision not in PRECISIONS:
        raise UserError(f"trainer.precision={precision}: choose one of {', '.join(PRECISIONS)}")
    nodes = trainer.get("num_nodes", 1)
    if not isinstance(nodes, int) or nodes < 1:
        raise UserError(f"trainer.num_nodes={nodes}: give a whole number of at least 1")


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of "i/n"; raises UserError unless 0 <= i < n."""
    index, _, number = text.partition("/")
    if not (index.isdecimal() and number.isdecimal() and int(index) < int(number)):
        raise UserError(f"data.shard={text}: give i/n with 0 <= i < n, such as 0/4 to 3/4")
    return int(index), int(number)
