"""How a generator is loaded: every option once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ph2p.errors import UserError
from ph2p.models.tokens import TokenFilter

WORDS = ("blocklist", "allowlist", "tokens")  # arguments of `Vocabulary`


@dataclass(frozen=True)
class LoadOptions:
    """What is loaded of a model and how it uses memory.

    Raises:
        UserError: a size of the picture that is none.
    """

    config: str | Path | None = None  # of a single file: folder or hub id with its configuration; None: as it looks
    omit: Sequence[str] = ()  # components to leave out, where the family can do without
    lora: str | Path | None = None  # a file, folder or hub id with LoRA weights, merged into the pipeline
    lora_scale: float = 1.0  # the weights are taken so many times
    lora_revision: str | None = None
    image_size: int | Sequence[int] | None = None  # (H, W), or one number for both; None: the model's own
    clip_skip: int | None = None  # see `Generator`
    offload: bool = False  # VAE and encoders without a gradient are on the device only while they work
    vae_tiling: bool = False  # large pictures go through the VAE in tiles
    gradient_checkpointing: bool = False  # the denoiser keeps less and computes more
    compile: bool = False  # the denoiser goes through torch.compile
    revision: str | None = None
    variant: str | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    blocklist: Iterable[str] | None = None
    allowlist: Iterable[str] | None = None
    tokens: TokenFilter | None = None

    def __post_init__(self) -> None:
        height_and_width(self.image_size)

    @property
    def size(self) -> tuple[int, int] | None:
        return height_and_width(self.image_size)

    @property
    def words(self) -> dict[str, Any]:
        """The arguments of `Vocabulary` that are given."""
        given = {name: getattr(self, name) for name in WORDS}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def cache(self) -> dict[str, Any]:
        """The arguments of every download."""
        return {"local_files_only": self.local_files_only, "cache_dir": self.cache_dir}


# The options that are keys of the configuration's `generator`, by the same names.
LOADING = tuple(field.name for field in fields(LoadOptions) if field.name not in WORDS)


def height_and_width(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """(H, W) of `generator.image_size`, which is one number or two.

    Raises:
        UserError: it is something else.
    """
    if size is None:
        return None
    both = [size, size] if isinstance(size, int) else list(size)
    if len(both) != 2 or not all(isinstance(side, int) and side > 0 for side in both):
        raise UserError(f"generator.image_size={size}: give [height, width] in pixels, or one number for both")
    return both[0], both[1]
