"""From a configuration to what it describes: generator, scorer, optimiser and data set, each checked."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from hydra.utils import instantiate

from ph2p.config.method import STARTS, MethodConfig
from ph2p.config.schema import Config, GeneratorConfig, ScorerConfig
from ph2p.data import Targets
from ph2p.errors import UserError
from ph2p.evaluation.backbones import check_transfer
from ph2p.inverter import Inverter
from ph2p.models.generators import LOADING, Generator, load_generator
from ph2p.models.microbatch import MicroBatch
from ph2p.models.scorer import Scorer, load_scorer
from ph2p.models.tokens import TokenFilter, read_words
from ph2p.run.ranks import own_device

Part = TypeVar("Part")


def quiet_libraries() -> None:
    """Keep what Lightning says at every fit off the screen: an image batch is a fit, and there may be thousands."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (".*LeafSpec.*is deprecated", ".*is in eval mode.*", ".*logger.*", ".*srun.*"):
        warnings.filterwarnings("ignore", message=message)


def load_inverter(cfg: Config) -> Inverter:
    """Load generator and scorer onto the trainer's device; raises UserError for what cannot be built or read."""
    device = build("trainer", lambda: own_device(cfg.trainer))
    check_optimizer(cfg.method)
    check_transfer(cfg.evaluation)
    generator = _load_generator(cfg.generator, device, str(cfg.trainer.get("precision")))
    _check_fit(generator, cfg)
    return _inverter(generator, _load_scorer(cfg.scorer, device), cfg)


def with_config(inverter: Inverter, cfg: Config) -> Inverter:
    """The same loaded models with another configuration of method, evaluation and seed; raises UserError for one that
    does not fit them."""
    check_optimizer(cfg.method)
    _check_fit(inverter.generator, cfg)
    return _inverter(inverter.generator, inverter.scorer, cfg)


def _inverter(generator: Generator, scorer: Scorer, cfg: Config) -> Inverter:
    generator.microbatch = MicroBatch(None if cfg.method.microbatch == "auto" else cfg.method.microbatch)
    return Inverter(generator, scorer, cfg)


def make_targets(cfg: Config) -> Targets:
    """The images that `cfg.data` names, listed but not read; raises UserError where there are none."""
    targets: Targets = build("data", lambda: instantiate(cfg.data, _convert_="all"))
    return targets


def _load_generator(generator: GeneratorConfig, device: torch.device, precision: str) -> Generator:
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    options = {key: getattr(generator, key) for key in LOADING} | _words(generator)
    loaded = load_generator(generator.path, device=device, dtype=dtype, **options)
    return loaded.mix(torch.bfloat16) if precision == "bf16-mixed" else loaded


def _load_scorer(scorer: ScorerConfig, device: torch.device) -> Scorer:
    hub = {key: getattr(scorer, key) for key in ("revision", "cache_dir", "local_files_only")}
    return load_scorer(scorer.path, device=device, **hub)


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


def _check_fit(generator: Generator, cfg: Config) -> None:
    """What is asked for and what the model can do fit each other; raises UserError that names the key."""
    method = cfg.method
    key, value, length = "prompt_length", str(method.prompt_length), method.prompt_length
    if method.init not in STARTS and not method.pad_init:
        with named("method.init"):
            key, value, length = "init", method.init, len(generator.vocabulary.encode(method.init))
    if length > generator.max_prompt_length:
        raise UserError(
            f"method.{key}={value}: {length} tokens, but this model reads at most "
            f"{generator.max_prompt_length}; use fewer"
        )
    for key, window in {"method": method.timesteps, "evaluation": cfg.evaluation.timesteps}.items():
        if window[1] > generator.num_timesteps:
            raise UserError(f"{key}.timesteps={window}: this model has {generator.num_timesteps} timesteps")
    steps = {
        "generator.steps": cfg.generator.steps,
        "method.selection.steps": cfg.generator.steps_at_most(method.selection.steps),
    }
    generator.check_sampling(steps, cfg.generator.guidance_rescale)


@contextmanager
def named(key: str) -> Iterator[None]:
    """Have a UserError about a prompt name the key that gives it."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("prompt:", f"{key}:", 1)) from error


def check_optimizer(method: MethodConfig) -> None:
    """Build the optimiser once: what is wrong in its keys stops a run before a model is loaded."""
    if method.optimizer:
        dummy = torch.nn.Parameter(torch.zeros(1, 1))
        build("method.optimizer", lambda: instantiate(method.optimizer, _partial_=True)([dummy]))


def build(key: str, make: Callable[[], Part]) -> Part:
    """Make what a part of the configuration describes; raises UserError, one line that names the part."""
    try:
        return make()
    except Exception as error:  # constructors raise anything, and Hydra wraps it once more
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from error
        raise UserError(f"{key}: {' '.join(str(cause).split())}") from error
