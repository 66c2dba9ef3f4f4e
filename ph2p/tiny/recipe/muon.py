"""The optimiser of the denoiser: Muon for the matrices inside, AdamW for everything else."""

from collections.abc import Callable, Iterable

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
            for parameter in group["params"]:
                if parameter.grad is not None:
                    direction = self._matrix(parameter, group) if group["matrices"] else self._adam(parameter, group)
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])
        return loss

    def _matrix(self, parameter: Tensor, group: dict) -> Tensor:
        state, rate = self.state[parameter], 1 - group["momentum"]
        momentum = state.setdefault("momentum", torch.zeros_like(parameter)).lerp_(parameter.grad, rate)
        ahead = parameter.grad.lerp(momentum, group["momentum"])  # Nesterov's
        matrix = orthogonal(ahead.flatten(1))
        return matrix.view_as(parameter) * 0.2 * max(matrix.shape) ** 0.5

    def _adam(self, parameter: Tensor, group: dict) -> Tensor:
        state, (one, two) = self.state[parameter], group["betas"]
        state["step"] = state.get("step", 0) + 1
        first = state.setdefault("first", torch.zeros_like(parameter)).lerp_(parameter.grad, 1 - one)
        second = state.setdefault("second", torch.zeros_like(parameter)).lerp_(parameter.grad.square(), 1 - two)
        deviation = (second / (1 - two ** state["step"])).sqrt_().add_(1e-8)
        return first / (1 - one ** state["step"]) / deviation


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Bring a matrix's singular values near 1, to within 0.7 and 1.2, by Jordan's quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.T).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x if wide else x.T).to(matrix.dtype)


def split_parameters(model: nn.Module) -> list[dict]:
    """Two groups: the matrices of hidden layers, and embeddings, first and last layers, biases and norms."""
    inside: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            hidden = parameter.ndim > 1 and not any(part in name for part in OUTSIDE)
            (inside if hidden else others).append(parameter)
    return [{"params": inside, "matrices": True}, {"params": others}]
