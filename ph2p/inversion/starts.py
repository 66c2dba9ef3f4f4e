"""Where an optimisation starts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ph2p.config.schema import MethodConfig
from ph2p.inversion.draws import make_draws
from ph2p.models.vocabulary import Vocabulary


def starting_tokens(vocabulary: Vocabulary, method: MethodConfig, seed: int, keys: Sequence[str]) -> Tensor:
    """The starting tokens (B, M) of rows: given words, or random ones by seed and key."""
    if method.init != "random":
        words = torch.tensor(vocabulary.encode(method.init), device=vocabulary.embeddings.device)
        return words.repeat(len(keys), 1)
    seeds = make_draws(seed, keys, ("start",), 1, (0, 2**31), ()).timesteps  # (B, 1)
    generators = [torch.Generator().manual_seed(int(drawn)) for drawn in seeds]
    return torch.stack([vocabulary.random(method.prompt_length, generator) for generator in generators])
