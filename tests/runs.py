"""Runs of the engine in forked processes, which share one loaded model: starting Python takes longer than a run."""

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.utils import ModelOutput

from ph2p.config.compose import load_config
from ph2p.config.schema import Config
from ph2p.data import load_image
from ph2p.errors import UserError
from ph2p.report.records import read_results
from ph2p.run import stopping
from ph2p.run.build import load_inverter
from ph2p.run.engine import run
from ph2p.run.screen import Screen

QUICK = [
    *("debug=quick", "data=folder", "batch_size=2", "trainer=cpu", "evaluation.draws=2", "generator.steps=1"),
    *("method.prompt_length=3", "method.draws=1", "method.selection.steps=1", "method.selection.draws=2"),
    *("method.selection.finalists=1",),
]
SMALL = [
    *(*QUICK, "method.budget=146", "method.judge_draws=1", "method.optimizer.max_eval=4"),
    *("method.search.draws=1", "method.search.share=0.5", "method.search.race=[[7,1]]", "method.search.max_length=4"),
    *("method.search.starts=4",),
]


def make_pictures(folder: Path, count: int = 5) -> Path:
    """Pictures of 16 pixels, 0.png and so on."""
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(0)
    for k in range(count):
        colour = torch.rand(3, generator=random)
        pixels = (torch.rand(16, 16, 3, generator=random) * colour * 255).byte().numpy()
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return folder


def light_denoiser(sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **options: object) -> ModelOutput:
    """A U-Net's forward that takes no time, not convex in the prompt: what it predicts is not at stake."""
    colour = torch.sin(2 * encoder_hidden_states.cumsum(1)[:, ::3, :4]).mean(1)[:, :, None, None]  # (K, 4, 1, 1)
    times = timestep.expand(len(sample))[:, None, None, None]
    return ModelOutput(sample=0.9 * sample + colour * (1 + times / 1000))


class Wrapped:
    """An inverter whose batches another function sees: `call(inverter, targets, session)`."""

    def __init__(self, inverter: Any, call: Callable[..., Any]) -> None:
        self.inverter, self.call, self.generator = inverter, call, inverter.generator

    def __call__(self, targets: Any, session: Any) -> Any:
        return self.call(self.inverter, targets, session)


def plainly(inverter: Any, targets: Any, session: Any) -> Any:
    return inverter(targets, session)


class Runner:
    """Runs configurations that differ from `words` in keys that do not concern the loaded model."""

    def __init__(self, words: list[str]) -> None:
        torch.set_num_threads(1)  # a pool of threads does not survive a fork; and sums keep their order
        self.words = words
        self.inverter = load_inverter(load_config(words))
        self.inverter.generator.pipeline.unet.forward = light_denoiser

    def start(
        self,
        *words: str,
        before: Callable[[], None] = lambda: None,
        call: Callable[..., Any] = plainly,
        **environment: object,
    ) -> int:
        """Fork a run; returns its process id. `before` is called in the new process first of all; see `Wrapped`."""
        process = os.fork()
        if process:
            return process
        code = 70
        try:
            stopping.listen()
            os.environ.update({name: str(value) for name, value in environment.items()})
            before()
            code = self._run(words, call)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            code = getattr(error, "code", 2 if isinstance(error, UserError) else 70)
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _run(self, words: tuple[str, ...], call: Callable[..., Any]) -> int:
        def load(cfg: Config) -> Any:
            return Wrapped(replace(self.inverter, cfg=cfg), call)

        with open(os.devnull, "w") as nowhere:
            return run(load_config([*self.words, *words]), load, Screen(nowhere))

    def run(
        self,
        *words: str,
        before: Callable[[], None] = lambda: None,
        call: Callable[..., Any] = plainly,
        **environment: object,
    ) -> int:
        """Run to the end; returns the exit code, minus the signal's number where one has killed it."""
        return ended(self.start(*words, before=before, call=call, **environment))

    def ranks(self, world: int, *words: str, before: Callable[[], None] = lambda: None) -> list[int]:
        """Run as so many ranks, started as a cluster would; returns their exit codes."""
        words = (f"trainer.devices={world}", *words)
        processes = [self.start(*words, before=before, LOCAL_RANK=rank) for rank in range(world)]
        return [ended(process) for process in processes]

    def overflow(self, picture: Path) -> None:
        """Have the encoder overflow at one picture, as some do in low precision; for use before a run."""
        encode, size = self.inverter.generator.encode_images, self.inverter.generator.image_size
        bad = load_image(picture, size)

        def encode_images(images: Tensor) -> Tensor:
            hit = (images == bad).flatten(1).all(1)[:, None, None, None]
            return torch.where(hit, torch.nan, encode(images))

        self.inverter.generator.encode_images = encode_images


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill_after(process: int, seconds: float, number: signal.Signals) -> int:
    """Send the signal after a while, if the process still runs; returns its exit code."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(process, number)
    return ended(process)


def lines(folder: Path) -> list[dict]:
    """All records of all ranks, each line of which must be whole."""
    parts = sorted((folder / "results").glob("part-*.jsonl"))
    return [json.loads(line) for part in parts for line in part.read_text(encoding="utf-8").splitlines()]


def found(folder: Path, *anew: str) -> dict[str, dict]:
    """What a run has found, without what may differ: an image's record, its files as bytes.

    Each image has one record of success, but those that were done `anew`.
    """
    times = Counter(record["image_id"] for record in lines(folder) if record["status"] == "ok")
    times = {name: count for name, count in times.items() if name not in anew}
    assert set(times.values()) <= {1}, times
    result = {}
    for record in read_results(folder):
        files = record.pop("files", {})
        names = [name for value in files.values() for name in (value if isinstance(value, list) else [value])]
        for key in ("seconds", "peak_memory"):
            record.pop(key, None)  # a failed image has none
        result[record["image_id"]] = record | {name: (folder / name).read_bytes() for name in names}
    return result
