"""Records what a denoiser's cross-attention looks at, without changing what the denoiser says."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn.functional import interpolate

from ph2p.errors import UserError
from ph2p.models.generators import Generator

CROSS = "attn2"  # as diffusers names the attention of picture to text in a transformer block


class Recorder:
    """Adds up attention probabilities, averaged over heads, of all cross-attention layers of one forward pass.

    DAAM (Tang et al., arXiv 2210.04885, eq. 5) adds up the maps of all layers, each enlarged to one size by bicubic
    interpolation; here they are averaged. `total` is (K, L, H, W): of each row, how much every place of the picture
    looks at each of the L places of the text.
    """

    def __init__(self, latent_shape: tuple[int, ...], size: tuple[int, int]) -> None:
        self.grid, self.size = latent_shape[-2:], size
        self.total: Tensor | None = None
        self.layers = 0

    def add(self, probabilities: Tensor, heads: int) -> None:
        """Take the probabilities (K heads, P, L) of a layer of P places."""
        rows, places, length = probabilities.shape
        height, width = _grid_of(places, self.grid)
        maps = probabilities.float().view(rows // heads, heads, places, length).mean(1)  # (K, P, L)
        maps = maps.transpose(1, 2).unflatten(2, (height, width))
        large = interpolate(maps, self.size, mode="bicubic").clamp_min(0)
        self.total = large if self.total is None else self.total + large
        self.layers += 1

    def mean(self) -> Tensor:
        """The mean over the layers of the pass, (K, L, H, W)."""
        assert self.total is not None, "the denoiser was not asked"
        return self.total / self.layers


class _Listening:
    """An attention processor that computes the probabilities for a recorder and leaves the layer's work to its own."""

    def __init__(self, own: Any, recorder: Recorder) -> None:
        self.own, self.recorder = own, recorder

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        mask = attn.prepare_attention_mask(attention_mask, text.shape[1], len(text))
        if attn.norm_cross:
            text = attn.norm_encoder_hidden_states(text)
        query, key = (attn.head_to_batch_dim(states) for states in (attn.to_q(hidden_states), attn.to_k(text)))
        if mask is not None:  # one row for all places
            mask = mask.expand(-1, query.shape[1], -1)
        self.recorder.add(attn.get_attention_scores(query, key, mask), attn.heads)
        output: Tensor = self.own(attn, hidden_states, encoder_hidden_states, attention_mask, **options)
        return output


@contextmanager
def recording(generator: Generator) -> Iterator[Recorder]:
    """While inside, a pass of the denoiser is recorded.

    Raises:
        UserError: the family's denoiser has no cross-attention, such as Stable Diffusion 3 and FLUX.1, in which
            picture and text attend to each other in one sequence.
    """
    layers = [
        layer
        for name, layer in generator.denoiser.named_modules()
        if isinstance(layer, Attention) and name.rpartition(".")[2] == CROSS
    ]
    if not layers:
        raise UserError(
            f"{type(generator.denoiser).__name__}: has no cross-attention, so attention maps cannot be recorded; "
            "take Stable Diffusion 1 or 2, SDXL or PixArt-Sigma"
        )
    recorder = Recorder(generator.latent_shape, generator.image_size)
    own = [layer.processor for layer in layers]
    for layer, processor in zip(layers, own, strict=True):
        layer.processor = _Listening(processor, recorder)
    try:
        yield recorder
    finally:
        for layer, processor in zip(layers, own, strict=True):
            layer.processor = processor


def _grid_of(places: int, latent: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a layer of so many places: the latent's, halved as often as it takes."""
    height, width = latent
    while height * width > places:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != places:
        raise ValueError(f"{places} places are no reduction of a latent of {latent[0]} x {latent[1]}")
    return height, width
