"""Where an optimisation starts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ph2p.config.method import MethodConfig
from ph2p.errors import UserError
from ph2p.inversion.draws import make_draws
from ph2p.inversion.prompts import stacked
from ph2p.inversion.retrieval import retrieve
from ph2p.models.scorer import Scorer
from ph2p.models.vocabulary import Vocabulary


def starting_tokens(
    vocabulary: Vocabulary,
    scorer: Scorer,
    method: MethodConfig,
    seed: int,
    keys: Sequence[str],
    features: Tensor,
    captions: Sequence[Sequence[int]] = (),
) -> Tensor:
    """The starting tokens (B R, M) of the rows `keys`, R for each of the images whose CLIP `features` (B, E) are given.

    `method.init` says which: random ones by seed and key, the words that CLIP finds for the picture (what is optimised
    from several starts begins with them once, and otherwise at random), or given words;
    with `pad_init` those of them that are one token, and random ones behind them up to `prompt_length`. For
    `init=caption` the rows' `captions` are given as tokens: where nothing changes them they stay as they are written,
    padded to one length (`ph2p.inversion.prompts`); otherwise their allowed words are the beginning. What the
    vocabulary requires takes the places of the tokens nearest to it.
    """
    if method.init == "caption" and method.written:
        return stacked(captions).to(vocabulary.embeddings.device)
    start = _starting_tokens(vocabulary, scorer, method, seed, keys, features, captions)
    return vocabulary.holding(start, vocabulary.embed(start))


def _starting_tokens(
    vocabulary: Vocabulary,
    scorer: Scorer,
    method: MethodConfig,
    seed: int,
    keys: Sequence[str],
    features: Tensor,
    captions: Sequence[Sequence[int]],
) -> Tensor:
    if method.init == "retrieval":
        return _retrieved(vocabulary, scorer, method, seed, keys, features)
    if method.init == "random":
        return random_tokens(vocabulary, method.prompt_length, seed, keys)
    if method.init == "caption":
        start = random_tokens(vocabulary, method.prompt_length, seed, keys)
        for row, caption in enumerate(captions):
            known = [token for token in caption if vocabulary.allowed[token]][: method.prompt_length]
            start[row, : len(known)] = torch.tensor(known, dtype=torch.long, device=start.device)
        return start
    if not method.pad_init:
        given = torch.tensor(vocabulary.encode(method.init), device=vocabulary.embeddings.device)
        return given.repeat(len(keys), 1)
    words = whole_words(vocabulary, method.init)[: method.prompt_length]
    start = random_tokens(vocabulary, method.prompt_length, seed, keys)
    start[:, : len(words)] = torch.tensor(words, dtype=torch.long, device=start.device)
    return start


def _retrieved(
    vocabulary: Vocabulary, scorer: Scorer, method: MethodConfig, seed: int, keys: Sequence[str], features: Tensor
) -> Tensor:
    """The words that CLIP finds for each image, and for its other restarts random ones: a beam's are much the same.

    Where nothing changes them the restarts are the beam.
    """
    if method.optimizer is None:
        return retrieve(scorer, vocabulary, features, method.prompt_length, method.restarts).flatten(0, 1)
    start = random_tokens(vocabulary, method.prompt_length, seed, keys)
    start[:: method.restarts] = retrieve(scorer, vocabulary, features, method.prompt_length, 1)[:, 0].to(start.device)
    return start


def random_tokens(vocabulary: Vocabulary, length: int, seed: int, keys: Sequence[str]) -> Tensor:
    """Allowed tokens (B, M), by seed and key."""
    seeds = make_draws(seed, keys, ("start",), 1, (0, 2**31), ()).timesteps  # (B, 1)
    generators = [torch.Generator().manual_seed(int(drawn)) for drawn in seeds]
    return torch.stack([vocabulary.random(length, generator) for generator in generators])


def whole_words(vocabulary: Vocabulary, text: str) -> list[int]:
    """The tokens of those words of a text that are one token of this vocabulary."""
    found = []
    for word in text.split():
        try:
            ids = vocabulary.encode(word)
        except UserError:  # letters that the vocabulary lacks
            continue
        found += ids if len(ids) == 1 else []
    return found
