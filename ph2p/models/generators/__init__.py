"""Frozen text-to-image pipelines: a base class, one file for every family, and their loading."""

from ph2p.models.generators.base import Generator
from ph2p.models.generators.families import FAMILIES
from ph2p.models.generators.loading import load_generator
from ph2p.models.generators.options import LOADING, LoadOptions
from ph2p.models.generators.source import find

__all__ = ["FAMILIES", "LOADING", "Generator", "LoadOptions", "find", "load_generator"]
