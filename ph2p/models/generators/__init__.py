"""Frozen text-to-image pipelines: a base class, one file for every family, and their loading."""

from ph2p.models.generators.base import Generator
from ph2p.models.generators.families import FAMILIES
from ph2p.models.generators.loading import LOADING, load_generator

__all__ = ["FAMILIES", "LOADING", "Generator", "load_generator"]
