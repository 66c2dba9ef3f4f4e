"""Prompt inversion as a LightningModule whose only parameter is the prompt.

Read this file, then `projection.py` (what happens at the end of each epoch) and `lbfgs.py`.
"""

from collections.abc import Callable

import lightning as L
import torch
from torch import Tensor, nn

from ph2p.inversion.draws import Draws
from ph2p.inversion.objectives import rows_of_gradient
from ph2p.inversion.simplex import SimplexDescent
from ph2p.inversion.units import Units
from ph2p.models.microbatch import MicroBatch, parts
from ph2p.models.vocabulary import Vocabulary

Objective = Callable[[Tensor, Tensor, Tensor, Draws], Tensor]
OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class PromptInversion(L.LightningModule):
    """The prompts of one image batch, optimised in the embedding space; row b is a problem of its own.

    The parameter is X, the `coordinates` (B, M, D) of the prompts in `units`: P = origin + scale * X. So rates and
    lengths of the optimiser are in these units, and everybody else sees the `prompt` P.

    `objective(prompt (B, M, D), token_ids (B, M), latents, draws)` gives losses (B,). With `straight_through`
    the objective sees the nearest tokens at every evaluation while the gradient moves the continuous prompt
    (PEZ, arXiv 2302.03668, algorithm 1); without, the prompt stays continuous until a callback projects it.
    A closure sends at most as many rows as `microbatch` allows through the objective at once.
    The objective's models are held by reference: they are frozen, and a checkpoint holds the prompt alone.
    """

    def __init__(
        self,
        objective: Objective,
        vocabulary: Vocabulary,
        token_ids: Tensor,
        optimizer: OptimizerFactory | None,
        units: Units,
        straight_through: bool = False,
        microbatch: MicroBatch | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # the losses are (B,), and the optimiser calls back for more
        self._frozen = (objective, vocabulary)  # a tuple hides them from state_dict()
        self.register_buffer("origin", units.origin, persistent=False)  # (D,); a buffer goes where the prompt goes
        self.register_buffer("scale", units.scale, persistent=False)  # (D,)
        self._optimizer_factory = optimizer  # None: nothing is trained
        self.microbatch = microbatch or MicroBatch()
        self.straight_through = straight_through
        self.coordinates = nn.Parameter(units.coordinates(vocabulary.embed(token_ids)))  # X (B, M, D)
        self.register_buffer("token_ids", token_ids.clone())  # (B, M), the last projection
        self.register_buffer("token_losses", torch.full((len(token_ids),), torch.inf))  # (B,), of token_ids, if known
        self.register_buffer("losses", torch.full((len(token_ids),), torch.nan))  # (B,), the last step's
        self.register_buffer("first_losses", self.losses.clone())  # (B,), where the epoch began
        self.register_buffer("alive", torch.ones(len(token_ids), dtype=torch.bool))  # (B,), rows that are optimised
        self.register_buffer("evaluations", torch.zeros((), dtype=torch.long))  # of the objective, a row
        self.evaluated: list[Tensor] = []  # (B,) of each evaluation in the step

    @property
    def vocabulary(self) -> Vocabulary:
        return self._frozen[1]

    @property
    def units(self) -> Units:
        return Units(self.origin, self.scale)

    @property
    def prompt(self) -> Tensor:
        """The prompt embeddings P (B, M, D) as they stand."""
        return self.units.prompt(self.coordinates)

    @torch.no_grad()
    def move_to(self, prompt: Tensor) -> None:
        """Go on from these prompt embeddings (B, M, D)."""
        self.coordinates.copy_(self.units.coordinates(prompt))

    def forward(self, latents: Tensor, draws: Draws, rows: Tensor | slice = slice(None)) -> Tensor:
        """Losses (B,) of the prompts as they stand, or of some `rows`, whose latents and draws are then given."""
        prompt = self.prompt[rows]
        if self.straight_through:
            self.token_ids[rows] = self.vocabulary.nearest(prompt.detach())
            hard = self.vocabulary.embed(self.token_ids[rows])
            prompt = hard + prompt - prompt.detach()  # the value of the tokens, the gradient of the prompt
        return self._frozen[0](prompt, self.token_ids[rows], latents, draws)

    def training_step(self, batch: tuple[Tensor, Draws], batch_index: int) -> None:
        """One step of the optimiser on one set of draws; L-BFGS evaluates the closure many times in it.

        Rows that are not `alive` are not evaluated: they have no loss, nan, and a gradient of zero.
        """
        latents, draws = batch
        optimizer, before = self.optimizers(), self.evaluations.clone()
        alive, number = self.alive.nonzero()[:, 0], draws.timesteps.shape[1]  # (A,), N

        def evaluate(size: int) -> Tensor:
            optimizer.zero_grad()
            losses = torch.where(self.alive, 0, torch.nan).to(self.coordinates.dtype)  # (B,)
            for part, columns, weight in parts(len(alive), number, size):
                rows = alive[part]
                some = weight * self(latents[rows], draws[rows, columns], rows)
                self.manual_backward(some.sum())  # rows share no parameter: the sum's gradient is each row's own
                losses[rows] += some.detach()
            return losses

        def closure() -> Tensor:
            losses = self.microbatch.run("gradient", rows_of_gradient(draws.timesteps[alive]), evaluate)
            if batch_index == 0 and self.evaluations == before:
                self.first_losses = losses
            self.evaluations += 1
            self.evaluated.append(losses.detach().clone())
            return losses

        self.evaluated = []
        self.losses = optimizer.step(closure)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self._optimizer_factory is not None
        optimizer = self._optimizer_factory([self.coordinates])
        if isinstance(optimizer, SimplexDescent):
            optimizer.over(self.units.coordinates(self.vocabulary.embed(self.vocabulary.allowed_ids)))  # (A, D)
        return optimizer
