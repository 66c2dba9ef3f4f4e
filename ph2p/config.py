"""The configuration: composed from `configs/`, checked, and its budget planned.

`ph2p.schema` says what each key means. Hydra checks types and unknown keys against it; `validate` checks ranges.
Both give one line.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ph2p import schema
from ph2p.errors import UserError

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")  # of the frozen models
PACKAGE = Path(__file__).resolve().parent


def config_dir() -> Path:
    """The folder of the YAML files: beside the package in a checkout, inside it when installed."""
    inside = PACKAGE / "configs"
    return inside if inside.exists() else PACKAGE.parent / "configs"


def register() -> None:
    """Make the schema and the `${package:...}` resolver known to Hydra."""
    OmegaConf.register_new_resolver("package", lambda path: str(PACKAGE / path), replace=True)
    store = ConfigStore.instance()
    store.store("schema", schema.Config)
    store.store("folder_schema", schema.FolderConfig, group="data")
    store.store("world_schema", schema.WorldConfig, group="data")
    store.store("coco_schema", schema.CocoConfig, group="data")
    store.store("captioned_schema", schema.CaptionedConfig, group="data")
    store.store("shards_schema", schema.ShardsConfig, group="data")
    store.store("schema", schema.GeneratorConfig, group="generator")
    store.store("schema", schema.ScorerConfig, group="scorer")
    store.store("schema", schema.MethodConfig, group="method")


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
    except AttributeError as error:  # key={...} where the method has null, and OmegaConf does not say so
        groups = [word for word in overrides if "={" in word]
        if not groups:
            raise
        raise UserError(f"{' '.join(groups)}: give such keys in a file of configs/method/, not here") from error


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
    _validate_shares(cfg.method)
    _validate_smoothing(cfg.method)
    _validate_counts(cfg)
    _validate_projection(cfg.method)
    for key in ("method.timesteps", "evaluation.timesteps"):
        window = OmegaConf.select(cfg, key)
        if len(window) != 2 or not 0 <= window[0] < window[1]:
            raise UserError(f"{key}={window}: give [first, last) with 0 <= first < last")
    delimiter = OmegaConf.select(cfg, "data.delimiter", default=",")
    if len(delimiter) != 1:
        raise UserError(f"data.delimiter={delimiter}: give one character")
    _validate_choices(cfg)
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


def _validate_shares(method: DictConfig) -> None:
    if method.search and not 0 < method.search.share < 1:
        raise UserError(f"method.search.share={method.search.share}: give a number in (0, 1)")
    if not 0 <= method.selection.margin < math.inf:
        raise UserError(f"method.selection.margin={method.selection.margin}: give a number of at least 0")


def _validate_smoothing(method: DictConfig) -> None:
    smoothed = method.optimizer is not None and method.objective != "clip"
    if not 0 <= method.smoothing < math.inf or (method.smoothing and not smoothed):
        raise UserError(
            f"method.smoothing={method.smoothing}: give 0, or a number above it where an optimizer descends on the "
            "denoising loss (method.objective=denoising)"
        )


def _validate_counts(cfg: DictConfig) -> None:
    positive = ["data.batch_size", "generator.steps", "evaluation.draws", "evaluation.renders"]
    positive += [f"method.{key}" for key in ("budget", "prompt_length", "draws", "steps", "restarts")]
    positive += ["method.optimizer.max_eval"] if cfg.method.optimizer else []
    positive += [f"method.selection.{key}" for key in ("shortlist", "draws", "finalists", "steps")]
    positive += [f"method.search.{key}" for key in ("draws", "swaps", "starts")] if cfg.method.search else []
    for key in positive:
        value = OmegaConf.select(cfg, key, default=1)
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{key}={value}: give a whole number of at least 1")


def _validate_projection(method: DictConfig) -> None:
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


def _validate_choices(cfg: DictConfig) -> None:
    for key, choices in {"method.objective": ("denoising", "clip"), "resume": ("auto", "force")}.items():
        value = OmegaConf.select(cfg, key)
        if value not in choices:
            raise UserError(f"{key}={value}: choose one of {', '.join(choices)}")
    for key, least in {"generator.image_size": 8, "generator.clip_skip": 0}.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and value < least:
            raise UserError(f"{key}={value}: give a whole number of at least {least}, or null")


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


@dataclass(frozen=True)
class Plan:
    """What a budget buys: epochs of the optimiser and rounds of the search."""

    epochs: int
    rounds: int


def plan(method: schema.MethodConfig) -> Plan:
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
