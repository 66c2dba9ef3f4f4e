"""Frozen text-to-image pipelines: a base class, one file for every family, and their loading."""

from ph2p.generators.base import Generator
from ph2p.generators.families import FAMILIES
from ph2p.generators.loading import LOADING, load_generator

__all__ = ["FAMILIES", "LOADING", "Generator", "load_generator"]
