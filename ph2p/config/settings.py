"""The keys that decide what a run finds."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

# Keys that change where, how fast or how prettily a run goes, but not what it finds.
FREE_KEYS = ("name", "output", "resume", "ckpt_path", "logger", "method.microbatch", "generator.gradient_checkpointing")
FREE_KEYS += ("trainer.accelerator", "trainer.devices", "trainer.num_nodes")
FREE_KEYS += ("data.batch_size", "data.shard", "data.count", "data.targets.count")


def settings(config: DictConfig) -> dict[str, Any]:
    """The keys of a resolved configuration that decide what a run finds, as {"a.b": value}."""
    flat = _flat(OmegaConf.to_container(config))
    return {key: value for key, value in flat.items() if not key.startswith(FREE_KEYS)}


def difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """The first key in which two `settings` differ."""
    return next((key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)), None)


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts to {"a.b": value}."""
    if not isinstance(node, dict):
        return {prefix: node}
    return {k: v for name, child in node.items() for k, v in _flat(child, f"{prefix}.{name}".lstrip(".")).items()}
