"""Small results folders for the tests of studies, and raters that are simulated."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ph2p.study.key import Key

Rate = Callable[[str, str, str], int]  # image, label of a run, question -> rating


def results(folder: Path, method: str, prompts: Mapping[str, str], **metrics: Sequence[float]) -> Path:
    """A finished run of so many images; each metric has a value an image."""
    (folder / "results").mkdir(parents=True)
    lines = []
    for row, (image, prompt) in enumerate(prompts.items()):
        name = f"images/{row}/target.png"
        (folder / name).parent.mkdir(parents=True)
        hue = np.random.default_rng(row).integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(hue).save(folder / name)
        values = {key: column[row] for key, column in metrics.items()}
        record = {"image_id": image, "status": "ok", "method": method, "content": f"{row:016x}", "prompt": prompt}
        lines.append(json.dumps({**record, **values, "files": {"target": name}}))
    (folder / "results" / "part-00000.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def answers(key: Key, rate: Rate, attentive: bool = True) -> dict[str, dict[str, int]]:
    """One rater's answers to everything, by item and question; of equal prompts the first run's counts."""
    points = {question.key: question.points for question in key.questions}
    found = {
        name: {asked: rate(key.pictures[item.picture], next(iter(item.runs)), asked) for asked in points}
        for name, item in key.items.items()
    }
    checks = {
        name: {asked: right if attentive else 1 + right % 5 for asked in points} for name, right in key.checks.items()
    }
    return found | checks


def save(file: Path, key: Key, rater: str, given: Mapping[str, Mapping[str, int]]) -> Path:
    """A rater's file, by its suffix, as the page saves it."""
    if file.suffix == ".json":
        file.write_text(json.dumps({"study": key.study, "rater": rater, "ratings": given}), encoding="utf-8")
        return file
    lines = [
        f'{key.study},"{rater}",{item},{question},{value}'
        for item, row in given.items()
        for question, value in row.items()
    ]
    file.write_text("\r\n".join(["study,rater,item,question,rating", *lines, ""]), encoding="utf-8")
    return file
