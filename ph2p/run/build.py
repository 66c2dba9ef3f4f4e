"""From a configuration to what it describes: generator, scorer, optimiser, trainer and loggers, each checked."""

import logging
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate

from ph2p.config.schema import Config, GeneratorConfig
from ph2p.errors import UserError
from ph2p.inverter import Inverter
from ph2p.models.generators import LOADING, load_generator
from ph2p.models.microbatch import MicroBatch
from ph2p.models.scorer import load_scorer
from ph2p.models.tokens import TokenFilter, read_words
from ph2p.run.logs import make_loggers
from ph2p.run.ranks import trainer_options


def quiet_libraries() -> None:
    """Keep what Lightning says at every fit off the screen: an image batch is a fit, and there may be thousands."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (".*LeafSpec.*is deprecated", ".*is in eval mode.*", ".*logger.*", ".*srun.*"):
        warnings.filterwarnings("ignore", message=message)


def load_inverter(cfg: Config) -> Inverter:
    """Load generator and scorer onto the trainer's device; raises UserError for what cannot be built or read."""
    quiet_libraries()
    device = _check_parts(cfg)
    generator = cfg.generator
    dtype = torch.bfloat16 if cfg.trainer.get("precision") == "bf16-true" else torch.float32
    options = {key: getattr(generator, key) for key in LOADING} | _words(generator)
    loaded = load_generator(generator.path, device=device, dtype=dtype, **options)
    if cfg.trainer.get("precision") == "bf16-mixed":
        loaded.mix(torch.bfloat16)
    loaded.microbatch = MicroBatch(None if cfg.method.microbatch == "auto" else cfg.method.microbatch)
    steps = {"generator.steps": generator.steps, "method.selection.steps": cfg.method.selection.steps}
    loaded.check_sampling(steps, generator.guidance_rescale)
    key, length = "prompt_length", cfg.method.prompt_length
    if cfg.method.init != "random":
        key, length = "init", len(loaded.vocabulary.encode(cfg.method.init))
    if length > loaded.max_prompt_length:
        raise UserError(
            f"method.{key}={getattr(cfg.method, key)}: {length} tokens, but this model reads at most "
            f"{loaded.max_prompt_length}; use fewer"
        )
    for key, window in {"method": cfg.method.timesteps, "evaluation": cfg.evaluation.timesteps}.items():
        if window[1] > loaded.num_timesteps:
            raise UserError(f"{key}.timesteps={window}: this model has {loaded.num_timesteps} timesteps")
    hub = {key: getattr(cfg.scorer, key) for key in ("revision", "cache_dir", "local_files_only")}
    return Inverter(loaded, load_scorer(cfg.scorer.path, device=device, **hub), cfg)


def _words(generator: GeneratorConfig) -> dict[str, Any]:
    """The arguments of `Vocabulary` that the configuration gives, word lists read from their files."""
    tokens = generator.tokens
    files = {
        "generator.blocklist": generator.blocklist,
        "generator.allowlist": generator.allowlist,
        "generator.tokens.frequent": tokens.frequent,
    }
    blocked, allowed, frequent = (read_words(file) if file else None for file in files.values())
    for (key, file), words in zip(files.items(), (blocked, allowed, frequent), strict=True):
        if words == [] and key != "generator.blocklist":
            raise UserError(f"{key}={file}: names no word; list one a line")
    rule = TokenFilter(
        scripts=tuple(tokens.scripts),
        min_length=tokens.min_length,
        max_length=tokens.max_length,
        frequent=frequent,
        protected=tokens.protected,
    )
    return {"blocklist": blocked, "allowlist": allowed, "tokens": rule}


def _check_parts(cfg: Config) -> torch.device:
    """Build optimiser, trainer and logger once: what is wrong in their keys stops a run before it begins.

    Returns the trainer's device.
    """
    if cfg.method.optimizer:
        dummy = torch.nn.Parameter(torch.zeros(1, 1))
        build("method.optimizer", lambda: instantiate(cfg.method.optimizer, _partial_=True)([dummy]))
    trainer = build("trainer", lambda: L.Trainer(**trainer_options(cfg.trainer), logger=False))
    build("logger", lambda: make_loggers(cfg))
    return trainer.strategy.root_device


def build(key: str, make: Callable[[], Any]) -> Any:
    """Make what a part of the configuration describes; raises UserError, one line that names the part."""
    try:
        return make()
    except Exception as error:  # constructors raise anything, and Hydra wraps it once more
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from error
        raise UserError(f"{key}: {' '.join(str(cause).split())}") from error
