"""Hard prompts of any length side by side: a tensor of token ids, padded at the end with `ABSENT`."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from ph2p.inversion.draws import Draws
from ph2p.inversion.objectives import candidate_losses, finite_or_infinite
from ph2p.models.generators import Generator

ABSENT = -1  # in the place of a token: the prompt has ended


def lengths(prompts: Tensor) -> Tensor:
    """The number of tokens (...) of padded prompts (..., L)."""
    return (prompts != ABSENT).sum(-1)


def present(prompt: Tensor) -> Tensor:
    """The tokens (M,) of one padded prompt (L,)."""
    return prompt[prompt != ABSENT]


def padded(prompts: Tensor, length: int) -> Tensor:
    """Prompts (..., L) padded to at least `length` places."""
    return pad(prompts, (0, max(0, length - prompts.shape[-1])), value=ABSENT)


def stacked(prompts: Sequence[Tensor | Sequence[int]], length: int = 0) -> Tensor:
    """Prompts of any lengths as one padded tensor (K, L) of at least `length` places."""
    rows = [torch.as_tensor(prompt, dtype=torch.long) for prompt in prompts]
    return padded(pad_sequence(rows, batch_first=True, padding_value=ABSENT), length)


@torch.no_grad()
def prompt_losses(generator: Generator, latents: Tensor, prompts: Tensor, draws: Draws) -> Tensor:
    """Denoising losses (B, K) of padded prompts (B, K, L) on the images' N draws; inf where one is not finite.

    Equal prompts of an image are scored once. Prompts of one length go through the model together, on a CPU those of
    one image: then its losses do not depend on the others. Costs N forward samples a distinct prompt.
    """
    batch, number, _ = prompts.shape
    image = torch.arange(batch, device=prompts.device).repeat_interleave(number)  # (B K)
    rows, owner = torch.unique(torch.cat([image[:, None], prompts.flatten(0, 1)], 1), dim=0, return_inverse=True)
    image, prompts = rows[:, 0], rows[:, 1:]  # (R,), (R, L)
    length = lengths(prompts)
    group = length + (image * (prompts.shape[1] + 1) if latents.device.type == "cpu" else 0)  # (R,)
    losses = latents.new_zeros(len(rows))
    for number_of_group in group.unique().tolist():
        some = (group == number_of_group).nonzero()[:, 0]
        size = int(length[some[0]])
        if latents.device.type == "cpu":
            one = image[some[:1]]
            losses[some] = candidate_losses(generator, latents[one], prompts[None, some, :size], draws[one])[0]
        else:
            of = image[some]
            losses[some] = candidate_losses(generator, latents[of], prompts[some, None, :size], draws[of])[:, 0]
    return finite_or_infinite(losses)[owner].view(batch, number)
