"""The configuration: composed from `configs/`, checked, and its budget planned.

`ph2p.schema` says what each key means. Hydra checks types and unknown keys against it; `validate` checks ranges.
Both give one line.
"""

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ph2p.config import schema
from ph2p.config.validate import validate
from ph2p.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]


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
