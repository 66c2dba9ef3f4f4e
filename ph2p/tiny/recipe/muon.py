"""The optimiser of the denoiser: Muon for the matrices inside, AdamW for everything else."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

OUTSIDE = ("embed", "conv_in", "conv_out", "class_")  # names of layers that are no map between hidden states


class Muon(torch.optim.Optimizer):
    """Step along the nearest orthogonal matrix of the momentum (Jordan et al. 2024, "Muon").

    The step is scaled by 0.2 sqrt(max(rows, columns)), so that it is as long as AdamW's at the same rate (Liu et al.
    2025, arXiv 2502.16982). A convolution is the matrix (out, in x height x width). Parameters in groups without
    `matrices` are stepped by AdamW.
    """

    def __init__(self, groups: Iterable[dict], lr: float, weight_decay: float):
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95, "betas": (0.9, 0.98), "matrices": False}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            directions = self._matrices(parameters, group) if group["matrices"] else self._adam(parameters, group)
            for parameter, direction in directions:
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])
        return loss

    def _matrices(self, parameters: list[Tensor], group: dict) -> Iterator[tuple[Tensor, Tensor]]:
        """Orthogonalise all matrices of one shape at once: many are small, and calls would cost more than products."""
        alike: dict[torch.Size, list[Tensor]] = {}
        for parameter in parameters:
            alike.setdefault(parameter.flatten(1).shape, []).append(parameter)
        for shape, some in alike.items():
            stacked = orthogonal(torch.stack([self._ahead(parameter, group).flatten(1) for parameter in some]))
            for parameter, matrix in zip(some, stacked, strict=True):
                yield parameter, matrix.view_as(parameter) * 0.2 * max(shape) ** 0.5

    def _ahead(self, parameter: Tensor, group: dict) -> Tensor:
        state, rate = self.state[parameter], 1 - group["momentum"]
        momentum = state.setdefault("momentum", torch.zeros_like(parameter)).lerp_(parameter.grad, rate)
        return parameter.grad.lerp(momentum, group["momentum"])  # Nesterov's

    def _adam(self, parameters: list[Tensor], group: dict) -> Iterator[tuple[Tensor, Tensor]]:
        one, two = group["betas"]
        for parameter in parameters:
            state = self.state[parameter]
            state["step"] = state.get("step", 0) + 1
            first = state.setdefault("first", torch.zeros_like(parameter)).lerp_(parameter.grad, 1 - one)
            second = state.setdefault("second", torch.zeros_like(parameter)).lerp_(parameter.grad.square(), 1 - two)
            deviation = (second / (1 - two ** state["step"])).sqrt_().add_(1e-8)
            yield parameter, first / (1 - one ** state["step"]) / deviation


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of matrices (..., m, n) near 1, to within 0.7 and 1.2.

    Jordan's quintic Newton-Schulz iteration, in float32: bfloat16 takes three times as long on CPUs that have it not.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = (matrices if wide else matrices.mT).float()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x if wide else x.mT).to(matrices.dtype)


def split_parameters(model: nn.Module) -> list[dict]:
    """Two groups: the matrices of hidden layers, and embeddings, first and last layers, biases and norms."""
    inside: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            hidden = parameter.ndim > 1 and not any(part in name for part in OUTSIDE)
            (inside if hidden else others).append(parameter)
    return [{"params": inside, "matrices": True}, {"params": others}]
