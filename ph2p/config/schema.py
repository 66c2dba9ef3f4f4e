"""The configuration's schema: every key with its type, default, meaning and range. YAML files in `configs/` fill it in.

Hydra checks types against these classes; `load_config` returns objects of them, whose ranges are checked when they
are made. The comment behind a key is what `--help` says of it.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from ph2p.config import checks

STARTS = ("random", "retrieval", "caption")  # what `method.init` may be beside a text
MOVES = {"delete": 8, "insert": 8, "borrow": 4, "exchange": 2, "shift": 2, "double": 2, "random": 2, "swap": 64}


@dataclass
class SearchConfig:
    """Discrete search after the optimisation (`inversion.search`)."""

    share: float = 0.5  # of the budget that the selection leaves, in (0, 1)
    starts: int = 12  # best candidates so far that the search races for its beginning
    draws: int = 4  # N of the gradient that proposes, at most those of the last stage of the race
    race: list[list[int]] = field(default_factory=lambda: [[64, 1], [16, 3], [4, 4]])  # [candidates, draws] of stages
    moves: dict[str, int] = field(default_factory=MOVES.copy)  # proposals of each a round, as long as room lasts
    min_length: int = 1  # of a prompt, tokens
    max_length: int = 20  # of a prompt, tokens

    def __post_init__(self) -> None:
        checks.require(0 < self.share < 1, "method.search.share", self.share, "give a number in (0, 1)")
        checks.require_whole(self, "method.search.", ("starts", "draws", "min_length", "max_length"))
        fits = bool(self.race) and all(len(stage) == 2 and min(stage) >= 1 for stage in self.race)
        checks.require(fits, "method.search.race", self.race, "give [[candidates, draws], ...], whole numbers above 0")
        last = self.race[-1][1]
        checks.require(self.draws <= last, "method.search.draws", self.draws, f"give at most {last}, the last stage's")
        fits = all(checks.is_whole(count, 0) for count in self.moves.values())
        checks.require(fits, "method.search.moves", self.moves, "give whole numbers of at least 0")
        fits = self.min_length <= self.max_length
        checks.require(fits, "method.search.min_length", self.min_length, f"give at most {self.max_length}")


@dataclass
class SelectionConfig:
    """How the winner is chosen among the candidates that were visited."""

    rule: str = "renderings"  # the most similar rendering wins; or loss, clip_text, released: inversion/selection.py
    shortlist: int = 12  # distinct candidates that are scored, those with the lowest loss so far
    draws: int = 16  # N of the validation draws
    finalists: int = 3  # at most; best of the shortlist that are rendered and ranked by CLIP image similarity
    margin: float = 0.02  # a finalist's loss exceeds the best one's by this part of it at most; CLIP decides among them
    steps: int = 15  # denoising steps of those renderings

    def __post_init__(self) -> None:
        checks.require_finite("method.selection.margin", self.margin)
        checks.require_whole(self, "method.selection.", ("shortlist", "draws", "finalists", "steps"))

    @property
    def validates(self) -> bool:
        """Whether a shortlist is scored on draws; the rules of others' code choose among all prompts visited."""
        return self.rule not in ("clip_text", "released")


@dataclass
class MethodConfig:
    """A method of prompt inversion. A new method is a new file in `configs/method/`."""

    name: str  # as results and the default folder are labelled
    budget: int  # denoiser samples an image, forward plus backward, everything but the final evaluation
    prompt_length: int = 12  # M, in [1, context length - 2]; more than words to find; a text has its own, unless padded
    init: str = "random"  # random: allowed tokens; retrieval: words that CLIP finds; caption; otherwise the words
    captioner: str | None = None  # of init=caption: folder or hub id of an image-to-text model; world: of drawn scenes
    pad_init: bool = False  # of the words of `init` take those that are one token, and random ones up to prompt_length
    require: list[str] = field(default_factory=list)  # words that stand in every prompt, each one token of the model
    forbid: list[str] = field(default_factory=list)  # words that stand in no prompt, beside those of the word lists
    objective: str = "denoising"  # or clip: one minus the CLIP similarity of prompt and picture
    timesteps: list[int] = field(default_factory=lambda: [500, 1000])  # t in [t_min, t_max)
    draws: int = 4  # N, drawn anew for every step of the optimiser
    smoothing: float = 0.0  # deviation of the prompt's shift in each draw, in units of the vocabulary's own
    steps: int = 1  # optimiser steps an epoch; the prompt is projected at the end of an epoch
    judge_draws: int = 0  # N of fixed draws that tell the best prompt so far, from which an epoch starts; 0: the last
    projection_scales: list[float] = field(default_factory=lambda: [1.0])  # lengths of an epoch's move that it projects
    restarts: int = 1  # prompts an image, each from its own start, as extra rows of the batch
    microbatch: Any = "auto"  # denoiser rows at once; auto: all, and half as many whenever memory runs out
    snap: bool = True  # the next epoch starts from the projected embeddings
    word_price: float = 0.0  # what a token must bring to stay, as a part of all that a prompt gains over no words
    straight_through: bool = False  # project at every evaluation, gradient to the continuous prompt
    projection: str = "euclid"  # the nearest token by Euclidean distance; cosine: by the angle alone
    optimizer: dict[str, Any] | None = None  # constructor call of a torch optimiser (_target_); null: keep the start
    search: SearchConfig | None = None  # discrete search after the optimisation; null: none
    selection: SelectionConfig = field(default_factory=SelectionConfig)  # how the winner is chosen
    time_limit: float | None = None  # minutes after which a batch ends with the best so far; null: the budget alone

    def __post_init__(self) -> None:
        fits = self.time_limit is None or 0 < self.time_limit < math.inf
        checks.require(fits, *self._of("time_limit"), "give a number of minutes above 0, or null")
        checks.require_whole(self, "method.", ("budget", "prompt_length", "draws", "steps", "restarts"))
        checks.require_window("method.timesteps", self.timesteps)
        checks.require(0 <= self.word_price < 1, "method.word_price", self.word_price, "give a number in [0, 1)")
        rows = self.microbatch
        checks.expand_paths(self, "captioner")
        wanted = "give it with method.init=caption, and only there: a folder, a hub id, or world"
        checks.require((self.init == "caption") == bool(self.captioner), "method.captioner", self.captioner, wanted)
        text = self.init not in STARTS
        checks.require(text or not self.pad_init, "method.pad_init", self.pad_init, "it needs words in method.init")
        checks.require_choice("method.projection", self.projection, ("euclid", "cosine"))
        fits = rows == "auto" or checks.is_whole(rows, 1)
        checks.require(fits, "method.microbatch", rows, "give auto or a whole number of at least 1")
        evaluations = (self.optimizer or {}).get("max_eval", 1)
        wanted = "give a whole number of at least 1"
        checks.require(checks.is_whole(evaluations, 1), "method.optimizer.max_eval", evaluations, wanted)
        if self.search and self.init in STARTS:
            most, wanted = (
                self.search.max_length,
                f"give at least method.prompt_length={self.prompt_length}, or a shorter one",
            )
            checks.require(most >= self.prompt_length, "method.search.max_length", most, wanted)
        self._check_words()
        self._check_smoothing()
        self._check_projection()

    @property
    def written(self) -> bool:
        """Whether prompts are captions that nothing changes: they may hold any word."""
        return self.init == "caption" and self.optimizer is None and self.search is None

    def _check_words(self) -> None:
        """Required and forbidden words are single words, no word is both, and there are places for the required."""
        given = {key: [word.casefold() for word in getattr(self, key)] for key in ("require", "forbid")}
        for key, words in given.items():
            fits = all(len(word.split()) == 1 for word in words)
            checks.require(fits, *self._of(key), "give single words, as in [red,square]")
        both = ", ".join(sorted(set(given["require"]) & set(given["forbid"])))
        checks.require(not both, *self._of("require"), f"{both} is forbidden by method.forbid too; choose one")
        text = [] if self.init in ("random", "retrieval", "caption") else self.init.split()
        found = ", ".join(sorted({word.casefold() for word in text} & set(given["forbid"])))
        checks.require(not found, *self._of("init"), f"holds {found}, which method.forbid leaves out; take it away")
        places, wanted = len(text) if text and not self.pad_init else self.prompt_length, len(set(given["require"]))
        key = "init" if text and not self.pad_init else "prompt_length"
        checks.require(wanted <= places, *self._of(key), f"give at least {wanted} words, as many as are required")

    def _check_smoothing(self) -> None:
        smoothed = self.optimizer is not None and self.objective == "denoising"
        fits = 0 <= self.smoothing < math.inf and (smoothed or not self.smoothing)
        wanted = "give 0, or a number above it where an optimizer descends on the loss of method.objective=denoising"
        checks.require(fits, "method.smoothing", self.smoothing, wanted)

    def _check_projection(self) -> None:
        judged = self.optimizer is not None and self.snap and not self.straight_through
        wanted = (
            "give 0, or a number above it where an optimizer's epochs end in a projection "
            "(method.snap=true, method.straight_through=false)"
        )
        checks.require(self.judge_draws == 0 or (self.judge_draws > 0 and judged), *self._of("judge_draws"), wanted)
        scales, key = self.projection_scales, self._of("projection_scales")
        checks.require(len(scales) > 0 and all(0 < scale < math.inf for scale in scales), *key, "give numbers above 0")
        checks.require(len(scales) == 1 or self.judge_draws > 0, *key, "more than one needs method.judge_draws")

    def _of(self, name: str) -> tuple[str, object]:
        return f"method.{name}", getattr(self, name)


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

    def __post_init__(self) -> None:
        checks.expand_paths(self, "language_model", "dinov2", "lpips")
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
