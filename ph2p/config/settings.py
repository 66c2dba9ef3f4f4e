"""The keys that decide what a run finds: a results folder is continued only by a run with the same."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ph2p.config.schema import Config
from ph2p.config.words import flatten
from ph2p.errors import UserError

FREE_KEYS = (
    *("name", "output", "resume", "ckpt_path", "logger", "sidecars"),  # where results and curves go
    *("data.name", "generator.name", "scorer.name"),  # labels; the paths say what is loaded
    *("batch_size", "shard", "data.count"),  # which images, in which company: rows are separate problems
    # Where models are kept, where they compute and with how much memory: the same up to rounding. What changes the
    # picture or the weights by more (vae_tiling, variant, omit, trainer.precision, ...) is not free.
    *("generator.cache_dir", "generator.local_files_only", "scorer.cache_dir", "scorer.local_files_only"),
    *("generator.offload", "generator.compile", "generator.gradient_checkpointing", "method.microbatch"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes"),
    *("trainer.deterministic", "trainer.benchmark", "trainer.detect_anomaly"),
    "generator.steps",  # of the last renderings alone: those that choose have method.selection.steps
)


def settings(config: Config) -> dict[str, Any]:
    """The keys of a configuration that decide what a run finds, as {"a.b": value}."""
    return _deciding(OmegaConf.structured(config))


def read_settings(file: Path) -> dict[str, Any]:
    """The settings of a results folder's config.yaml; raises UserError where it cannot be read as such."""
    try:
        config = OmegaConf.load(file)
        if isinstance(config, DictConfig) and {"data", "method", "seed"} <= config.keys():
            return _deciding(config)
        reason = "it holds no configuration"
    except (OSError, YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())[:100]
    raise UserError(f"{file}: is damaged ({reason}); restore it, or choose another name=...")


def as_yaml(config: Config) -> str:
    """A configuration as config.yaml holds it."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """The first key in which two `settings` differ."""
    return next((key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)), None)


def _deciding(config: DictConfig) -> dict[str, Any]:
    container = OmegaConf.to_container(config)
    assert isinstance(container, dict)
    flat = flatten({str(key): value for key, value in container.items()})
    free = tuple(f"{key}." for key in FREE_KEYS)
    return {
        key: value
        for key, value in flat.items()
        if not isinstance(value, dict) and key not in FREE_KEYS and not key.startswith(free)
    }
