"""The ranges of all values."""

import math

from omegaconf import DictConfig, OmegaConf

from ph2p.config.budget import plan
from ph2p.errors import UserError

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")  # of the frozen models


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
