"""The keys of a method: its type, default, meaning and range of each. YAML files in `configs/method/` fill them in."""

import math
from dataclasses import dataclass, field
from typing import Any

from ph2p.config import checks

STARTS = ("random", "retrieval", "caption")  # what `method.init` may be beside a text
MOVES = {
    "delete": 6,
    "insert": 6,
    "reword": 6,
    "splice": 6,
    "borrow": 4,
    "exchange": 2,
    "shift": 2,
    "double": 2,
    "neighbour": 12,
    "random": 2,
    "swap": 64,
}


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
    rewordings: int = 8  # of the winner that the language model proposes, scored where method.fluency counts

    def __post_init__(self) -> None:
        checks.require_finite("method.selection.margin", self.margin)
        checks.require_whole(self, "method.selection.", ("shortlist", "draws", "finalists", "steps"))
        checks.require_whole(self, "method.selection.", ("rewordings",), 0)

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
    restarts: int = 1  # starts an image; where a judge compares them, the better half goes on after half the epochs
    microbatch: Any = "auto"  # denoiser rows at once; auto: all, and half as many whenever memory runs out
    snap: bool = True  # the next epoch starts from the projected embeddings
    word_price: float = 0.0  # what a token must bring to stay, as a part of all that a prompt gains over no words
    fluency: float = 0.0  # what a nat of a language model's surprise at the prompt costs, as a part of that gain
    language_model: str | None = None  # of fluency, 0 without: folder or hub id of a causal model; world: drawn scenes'
    straight_through: bool = False  # project at every evaluation, gradient to the continuous prompt
    projection: str = "euclid"  # the nearest token by Euclidean distance; cosine: by the angle alone
    units: str = "deviation"  # of the optimiser's rates and lengths: the vocabulary's spread; embedding: none, as it is
    optimizer: dict[str, Any] | None = None  # constructor call of a torch optimiser (_target_); null: keep the start
    search: SearchConfig | None = None  # discrete search after the optimisation; null: none
    selection: SelectionConfig = field(default_factory=SelectionConfig)  # how the winner is chosen
    prompts: int = 1  # different prompts of an image in the results: the winner, and as many others as differ enough
    time_limit: float | None = None  # minutes after which a batch ends with the best so far; null: the budget alone

    def __post_init__(self) -> None:
        fits = self.time_limit is None or 0 < self.time_limit < math.inf
        checks.require(fits, *self._of("time_limit"), "give a number of minutes above 0, or null")
        checks.require_whole(self, "method.", ("budget", "prompt_length", "draws", "steps", "restarts", "prompts"))
        most, wanted = self.selection.shortlist, "give at most method.selection.shortlist"
        checks.require(self.prompts <= most, *self._of("prompts"), f"{wanted}={most}, or a longer one")
        checks.require_window("method.timesteps", self.timesteps)
        checks.require(0 <= self.word_price < 1, "method.word_price", self.word_price, "give a number in [0, 1)")
        rows = self.microbatch
        checks.expand_paths(self, "captioner", "language_model")
        wanted = "give it with method.init=caption, and only there: a folder, a hub id, or world"
        checks.require((self.init == "caption") == bool(self.captioner), "method.captioner", self.captioner, wanted)
        text = self.init not in STARTS
        checks.require(text or not self.pad_init, "method.pad_init", self.pad_init, "it needs words in method.init")
        checks.require_choice("method.projection", self.projection, ("euclid", "cosine"))
        checks.require_choice("method.units", self.units, ("deviation", "embedding"))
        fits = rows == "auto" or checks.is_whole(rows, 1)
        checks.require(fits, "method.microbatch", rows, "give auto or a whole number of at least 1")
        evaluations = (self.optimizer or {}).get("max_eval", 1)
        wanted = "give a whole number of at least 1"
        checks.require(checks.is_whole(evaluations, 1), "method.optimizer.max_eval", evaluations, wanted)
        if self.search and self.init in STARTS:
            most = self.search.max_length
            wanted = f"give at least method.prompt_length={self.prompt_length}, or a shorter one"
            checks.require(most >= self.prompt_length, "method.search.max_length", most, wanted)
        self._check_words()
        self._check_fluency()
        self._check_smoothing()
        self._check_projection()

    @property
    def fluent(self) -> bool:
        """Whether a language model says how prompts read."""
        return self.fluency > 0 and self.language_model is not None

    @property
    def advice(self) -> str | None:
        """What would make a wish come true that has no effect as it is; None if there is none."""
        if self.fluency and not self.fluent:
            return "No language model weighs how prompts read: method.language_model=distilbert/distilgpt2 is one"
        return None

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
        text = [] if self.init in STARTS else self.init.split()
        found = ", ".join(sorted({word.casefold() for word in text} & set(given["forbid"])))
        checks.require(not found, *self._of("init"), f"holds {found}, which method.forbid leaves out; take it away")
        places, wanted = len(text) if text and not self.pad_init else self.prompt_length, len(set(given["require"]))
        key = "init" if text and not self.pad_init else "prompt_length"
        checks.require(wanted <= places, *self._of(key), f"give at least {wanted} words, as many as are required")

    def _check_fluency(self) -> None:
        checks.require_finite("method.fluency", self.fluency)
        checks.require(not (self.fluent and self.written), *self._of("fluency"), "give 0: captions stay as written")
        fits = not self.fluent or self.selection.validates or self.search is not None
        wanted = f"give 0, or another method.selection.rule than {self.selection.rule}, which takes no losses"
        checks.require(fits, *self._of("fluency"), wanted)

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
