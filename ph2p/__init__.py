"""Prompt inversion for text-to-image diffusion models: which words would make this model paint this picture?

Shapes, in every docstring and trailing comment: B images in the batch, M prompt tokens, D embedding width,
V vocabulary size, A allowed tokens, L context length, E width of the conditioning or of CLIP features,
N noise draws, K candidates or denoiser rows, (C, h, w) a latent, (3, H, W) a picture.

The public names stand in `__init__.pyi`; each is imported when it is first asked for, so `import ph2p` is instant.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
