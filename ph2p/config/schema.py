"""The configuration's schema: every key with its type, default, meaning and range. YAML files in `configs/` fill it in.

Hydra checks types against these classes; `load_config` returns objects of them, whose ranges are checked when they
are made. The comment behind a key is what `--help` says of it.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from ph2p.config import checks
from ph2p.config.method import MethodConfig


@dataclass
class TokensConfig:
    """Which words of the model's vocabulary a prompt may use (`ph2p.models.tokens.TokenFilter`); docs/vocabulary.md."""

    scripts: list[str] = field(default_factory=lambda: ["latin"])  # of all letters, as Unicode names them; []: any
    min_length: int = 2  # letters
    max_length: int = 20  # letters
    frequent: str | None = None  # file of words, a frequency list, say: only these; null: all
    protected: list[str] = field(default_factory=list)  # words that are allowed whatever the rules and lists say

    def __post_init__(self) -> None:
        checks.expand_paths(self, "frequent")


@dataclass
class GeneratorConfig:
    """Which text-to-image model, and how it paints."""

    name: str  # a label; `path` says which model it is
    path: str  # a diffusers folder, a hub id or a single .safetensors checkpoint
    config: str | None = None  # of a single checkpoint: folder or hub id with its configuration; null: guess the hub id
    revision: str | None = None  # branch, tag or commit on the hub; null: the newest
    variant: str | None = None  # of the weight files, such as fp16
    cache_dir: str | None = None  # where downloads are kept; null: the hub's own cache
    local_files_only: bool = False  # true: never download
    omit: list[str] = field(default_factory=list)  # components to do without: [text_encoder_3] is SD 3 without T5
    lora: str | None = None  # LoRA weights: a .safetensors file, a folder or a hub id
    lora_scale: float = 1.0  # how much of them
    lora_revision: str | None = None  # branch, tag or commit on the hub; null: the newest
    image_size: Any = None  # pixels: one number, or [height, width]; null: the model's own
    clip_skip: int | None = None  # CLIP layers passed over at the end, as in diffusers; null: the model's own
    offload: bool = False  # VAE and encoders without a gradient wait on the CPU while they are not needed
    vae_tiling: bool = False  # large pictures go through the VAE in tiles
    gradient_checkpointing: bool = False  # less memory for the denoiser, a third more time
    compile: bool = False  # torch.compile the denoiser: minutes at the start, faster then
    blocklist: str | None = "${package:models/words/blocklist.txt}"  # file of words that no prompt holds; null: none
    allowlist: str | None = None  # file of the only words that may appear, one a line; `tokens` is then passed over
    tokens: TokensConfig = field(default_factory=TokensConfig)  # which words of the vocabulary a prompt may use
    language_model: str | None = None  # by which method=ph2p_plus says how prompts read; world: the drawn scenes' own
    steps: int = 30  # denoising steps of the renderings on the results page
    most_steps: int | None = None  # of any rendering: a distilled model's own number; null: no bound
    guidance_scale: float = 5.0  # of classifier-free guidance; 1 paints without
    guidance_rescale: float = 0.0  # arXiv 2305.08891, section 3.4

    def __post_init__(self) -> None:
        checks.expand_paths(self, "path", "config", "cache_dir", "lora", "blocklist", "allowlist")
        checks.require_whole(self, "generator.", ("steps", *(["most_steps"] if self.most_steps is not None else [])))
        fits = self.most_steps is None or self.steps <= self.most_steps
        checks.require(fits, "generator.steps", self.steps, f"give at most generator.most_steps={self.most_steps}")
        sides = self.image_size if isinstance(self.image_size, list | tuple) else [self.image_size] * 2
        fits = self.image_size is None or (len(sides) == 2 and all(checks.is_whole(side, 8) for side in sides))
        wanted = "give a whole number of at least 8, [height, width] of such, or null"
        checks.require(fits, "generator.image_size", self.image_size, wanted)
        for key, given in (("lora_scale", self.lora_scale != 1), ("lora_revision", self.lora_revision is not None)):
            checks.require(
                not given or self.lora is not None,
                f"generator.{key}",
                getattr(self, key),
                "there is no generator.lora; give one, or leave it out",
            )
        self._check_tokens()
        fits = self.clip_skip is None or self.clip_skip >= 0
        checks.require(fits, "generator.clip_skip", self.clip_skip, "give a whole number of at least 0, or null")

    def steps_at_most(self, steps: int) -> int:
        """So many denoising steps, or as many as a distilled model takes."""
        return steps if self.most_steps is None else min(steps, self.most_steps)

    def _check_tokens(self) -> None:
        """A rule for words is no rule beside a list of the only ones; protected words are."""
        for part in fields(TokensConfig):
            value, default = getattr(self.tokens, part.name), getattr(TokensConfig(), part.name)
            fits = self.allowlist is None or value == default or part.name == "protected"
            wanted = "has no effect beside generator.allowlist; leave it out, or give generator.allowlist=null"
            checks.require(fits, f"generator.tokens.{part.name}", value, wanted)


@dataclass
class ScorerConfig:
    """Which CLIP or SigLIP model ranks finalists and measures similarity; `method.objective=clip` descends on it."""

    name: str  # a label; `path` says which model it is
    path: str  # a folder of transformers or a hub id
    revision: str | None = None  # branch, tag or commit on the hub; null: the newest
    cache_dir: str | None = None  # where downloads are kept; null: the hub's own cache
    local_files_only: bool = False  # true: never download

    def __post_init__(self) -> None:
        checks.expand_paths(self, "path", "cache_dir")


@dataclass
class EvaluationConfig:
    """The final measurement, on draws that served neither the optimisation nor the selection."""

    draws: int = 64  # N
    timesteps: list[int] = field(default_factory=lambda: [500, 1000])  # t in [t_min, t_max), the same for all methods
    renders: int = 3  # renderings of the found prompt, and of the true caption where there is one
    language_model: str | None = None  # of perplexity: folder or hub id of a causal model; world: the drawn scenes' own
    dinov2: str | None = None  # folder or hub id: likeness of target and renderings by DINOv2
    lpips: str | None = None  # a .safetensors file: their distance by LPIPS; needs the extra `metrics`
    transfer: str | None = None  # folder or hub id of a second generator that paints the found prompts too

    def __post_init__(self) -> None:
        checks.expand_paths(self, "language_model", "dinov2", "lpips", "transfer")
        checks.require_whole(self, "evaluation.", ("draws", "renders"))
        checks.require_window("evaluation.timesteps", self.timesteps)


@dataclass
class Config:
    """The whole configuration."""

    data: dict[str, Any]  # which images: constructor call of a `ph2p.data.Targets` (_target_)
    generator: GeneratorConfig  # which text-to-image model, and how it paints
    scorer: ScorerConfig  # which CLIP or SigLIP model ranks finalists and measures similarity
    method: MethodConfig  # how prompts are found
    trainer: dict[str, Any]  # arguments of lightning.Trainer
    name: str  # results go to <output>/<name>
    logger: dict[str, Any] | None = None  # constructor call of a Lightning logger; {}: only the run's own table
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)  # the final measurement
    batch_size: int = 8  # images optimised at once; changes speed and memory, the results only by rounding
    shard: str = "0/1"  # i/n: only every n-th image from number i on, as for the task i of a job array
    seed: int = 0  # of all draws and starting tokens, in [0, 2**62)
    output: str = "outputs"  # the folder of all runs
    resume: str = "auto"  # auto: refuse a folder whose configuration differs; force: continue all the same
    sidecars: bool = False  # true: a text file with its prompt for each picture, captions/sub/name.txt for sub/name.png
    ckpt_path: str | None = None  # a checkpoint from which the batch in it goes on, such as one of another folder

    def __post_init__(self) -> None:
        checks.expand_paths(self, "output", "ckpt_path")
        checks.require_whole(self, "", ("batch_size",))
        checks.require(0 <= self.seed < 2**62, "seed", self.seed, "give a whole number in [0, 2**62)")
        checks.require_choice("resume", self.resume, ("auto", "force"))
        fits = bool(self.name) and "/" not in self.name and self.name not in (".", "..")
        checks.require(fits, "name", self.name, "give a folder name without slashes")
        checks.parse_shard(self.shard)
