"""What is measured without an inversion: what a wrong word costs, and how clear the gradient is, by timestep."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ph2p.data import Target
from ph2p.evaluation.texts import text_losses
from ph2p.inversion.batch import Batch
from ph2p.inversion.draws import Draws
from ph2p.inversion.objectives import losses_and_gradients
from ph2p.inversion.starts import random_tokens
from ph2p.inverter import Inverter

Row = dict[str, Any]


def wrong_words(inverter: Inverter, targets: Sequence[Target], options: Row) -> Iterator[Row]:
    """What it costs, by timestep, to get one attribute of the true caption wrong.

    A row for each scene, kind and part of the timesteps: `value` = (loss with the wrong word - loss of the caption) /
    (loss of no words - loss of the caption), the losses over that part, the last difference over all of them. The wrong
    word is what the next scene has in the place of it that differs. Scenes with other numbers of attributes than
    `kinds` are passed over.
    """
    generator, kinds = inverter.generator, options["kinds"]
    fitting = [t for t in targets if t.caption and t.words and len(t.words) == len(kinds)]
    if len(fitting) < 2:
        return
    batch = Batch(fitting, generator, inverter.scorer)
    for row, target in enumerate(fitting):
        assert target.caption is not None and target.words is not None
        others = fitting[row + 1 :] + fitting[:row]
        texts = {"caption": target.caption, "nothing": ""}
        for k, kind in enumerate(kinds):
            if (text := swapped(target, others, k)) is not None:
                texts[kind] = text
        losses: dict[str, list[float]] = {name: [] for name in texts}
        for draws in _bins(inverter, batch, options):
            for name, text in texts.items():
                one = slice(row, row + 1)
                losses[name] += text_losses(generator, batch.latents[one], [text], draws[one])
        gap = sum(losses["nothing"]) / len(losses["nothing"]) - sum(losses["caption"]) / len(losses["caption"])
        for name in [name for name in texts if name != "caption"]:
            for part, (loss, true) in enumerate(zip(losses[name], losses["caption"], strict=True)):
                yield {"image_id": target.image_id, "kind": name, "part": part, "value": (loss - true) / gap}


def swapped(target: Target, others: Sequence[Target], k: int) -> str | None:
    """The caption with its attribute number k as another scene has it; None where no other fits."""
    assert target.caption is not None and target.words is not None
    mine = [word for word in re.findall(r"\w+", target.caption) if word in target.words[k]]
    for other in others:
        assert other.caption is not None and other.words is not None
        theirs = [word for word in re.findall(r"\w+", other.caption) if word in other.words[k]]
        if mine and theirs and theirs[0] not in target.words[k]:
            return re.sub(rf"\b{mine[0]}\b", theirs[0], target.caption, count=1)
    return None


def signal(inverter: Inverter, targets: Sequence[Target], options: Row) -> Iterator[Row]:
    """How much of the gradient at random words is signal, by timestep.

    With the gradients g_n of N single draws: signal = |mean|^2 - trace / N, without bias, noise = trace of their
    covariance; `value` = signal / noise.
    """
    generator, method = inverter.generator, inverter.cfg.method
    batch = Batch(targets, generator, inverter.scorer)
    words = random_tokens(generator.vocabulary, method.prompt_length, inverter.cfg.seed, batch.keys)
    for part, draws in enumerate(_bins(inverter, batch, options)):
        for row, target in enumerate(targets):
            count = draws.timesteps.shape[1]
            single = Draws(draws.timesteps[row][:, None], draws.noise[row][:, None])  # (N, 1, ...)
            ids = words[row].expand(count, -1)
            latents = batch.latents[row].expand(count, -1, -1, -1)
            _, found = losses_and_gradients(generator, generator.vocabulary.embed(ids), ids, latents, single)
            yield {"image_id": target.image_id, "kind": "signal over noise", "part": part, "value": clarity(found)}


def clarity(gradients: torch.Tensor) -> float:
    """Signal over noise of N gradients (N, ...)."""
    flat = gradients.flatten(1).double()
    noise = float(flat.var(0).sum())
    return (float(flat.mean(0).square().sum()) - noise / len(flat)) / noise if noise else float("nan")


def _bins(inverter: Inverter, batch: Batch, options: Row) -> Iterator[Draws]:
    """Draws of each of `bins` equal parts of the timesteps."""
    end, parts = inverter.generator.num_timesteps, options["bins"]
    for part in range(parts):
        window = (end * part // parts, end * (part + 1) // parts)
        yield batch.draws(inverter.cfg.seed, f"probe {part}", options["draws"], window)


PROBES = {"wrong words": wrong_words, "signal": signal}
