"""Prompt inversion for text-to-image diffusion models: which words would make this model paint this picture?

Shapes, in every docstring and trailing comment: B images in the batch, M prompt tokens, D embedding width,
V vocabulary size, A allowed tokens, L context length, E width of the conditioning or of CLIP features,
N noise draws, K candidates or denoiser rows, (C, h, w) a latent, (3, H, W) a picture.
"""

from typing import Any

__version__ = "0.1.0"
_HOME = {
    "invert": "api",
    "load_inverter": "run.build",
    "load_config": "config.compose",
    "load_generator": "models.generators",
    "load_scorer": "models.scorer",
    "Generator": "models.generators",
    "Vocabulary": "models.vocabulary",
    "BatchedLBFGS": "inversion.lbfgs",
    "PromptInversion": "inversion.module",
    "DelayedProjection": "inversion.projection",
    "InversionResult": "evaluation.result",
    "Inverter": "inverter",
    "UserError": "errors",
    "write_report": "report.table",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `import ph2p` itself stays instant."""
    if name not in _HOME:
        raise AttributeError(f"module 'ph2p' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"ph2p.{_HOME[name]}"), name)
