"""Builds a study: a page that shows pictures and prompts but not which run found them, and the key that says so."""

import base64
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ph2p.errors import UserError
from ph2p.evaluation.metrics import TABLE
from ph2p.files import as_json, plain_disk_errors, printable, write_whole
from ph2p.report.page import escaping_template
from ph2p.report.records import Record, number
from ph2p.study.key import Item, Key, key_file, read_key
from ph2p.study.material import Material, gather
from ph2p.study.questions import Question

TEMPLATES = Path(__file__).parent / "templates"
SECONDS = 6  # that a question takes, roughly


@dataclass(frozen=True)
class Plan:
    """How a study is laid out: at most so many pictures, so many attention checks. Raises UserError."""

    questions: tuple[Question, ...]
    seed: int = 0
    pictures: int | None = None
    checks: int | None = None

    def __post_init__(self) -> None:
        if self.pictures is not None and self.pictures < 1:
            raise UserError(f"--pictures {self.pictures}: give a number from 1")
        if self.checks is not None and self.checks < 0:
            raise UserError(f"--checks {self.checks}: give a number from 0")


@dataclass(frozen=True)
class Built:
    """A page and its key as they were written, and what to say about them."""

    page: Path
    key: Path
    notes: list[str]


def build_study(folders: Sequence[Path], output: Path, plan: Plan) -> Built:
    """Write the page and, beside it, the key. Raises UserError; the key of another study is never overwritten."""
    if output.suffix not in (".html", ".htm"):
        raise UserError(f"--output {printable(output)}: give the name of a page, such as study.html")
    material = gather(folders, plan.pictures, plan.seed)
    key = make_key(material, plan)
    place = key_file(output)
    if place.exists() and read_key(place).study != key.study:
        raise UserError(f"{printable(place)}: the key of another study, whose ratings need it; give another --output")
    with plain_disk_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, as_json(key.as_dict(), indent=1))
        write_whole(output, _page(key, material).encode())
    return Built(output, place, [*material.notes, *_about(key)])


# --- the key ------------------------------------------------------------------------------------------------------


def make_key(material: Material, plan: Plan) -> Key:
    """Name pictures, prompts and checks by the seed so that it says nothing. A picture's equal prompts are one item."""
    found = [(image, *pair) for image, records in material.records.items() for pair in _prompts(records)]
    count = max(2, min(6, round(len(found) / 12))) if plan.checks is None else plan.checks
    whole = json.dumps([plan.seed, count, found, [asdict(question) for question in plan.questions]])
    digest = hashlib.sha256(whole.encode()).hexdigest()
    draw = random.Random(digest)
    numbers = draw.sample(range(2**48), len(found) + len(material.records) + count)
    names = iter(f"{number:012x}" for number in numbers)
    pictures = {image: next(names) for image in material.records}
    items = {}
    for image, prompt, labels in found:
        runs = {label: _metrics(material.records[image][label]) for label in labels}
        items[next(names)] = Item(pictures[image], prompt, runs)
    answers = _answers(count, min(question.points for question in plan.questions), draw)
    return Key(
        study=digest[:12],
        seed=plan.seed,
        questions=plan.questions,
        runs={label: printable(folder) for label, folder in material.runs.items()},
        pictures={name: image for image, name in pictures.items()},
        items=items,
        checks=dict(zip(names, answers, strict=True)),
    )


def _prompts(records: dict[str, Record]) -> list[tuple[str, list[str]]]:
    """An image's different prompts, each with the labels of the runs that found it."""
    found: dict[str, list[str]] = {}
    for label, record in records.items():
        found.setdefault(printable(record.get("prompt") or ""), []).append(label)
    return list(found.items())


def _metrics(record: Record) -> dict[str, float | None]:
    return {metric.key: number(record, metric.key) for metric in TABLE}


def _answers(count: int, points: int, draw: random.Random) -> list[int]:
    """The answers that the checks ask for: none comes again before all have come, so no constant rater passes two."""
    answers: list[int] = []
    while len(answers) < count:
        answers += draw.sample(range(1, points + 1), points)
    return answers[:count]


# --- the page -----------------------------------------------------------------------------------------------------


def _page(key: Key, material: Material) -> str:
    """The page; its script is the only one that a browser runs there, by its hash."""
    script = (TEMPLATES / "study.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = escaping_template(TEMPLATES, "study.html.j2")
    shown, minutes = _shown(key, material), _minutes(key)
    return template.render(script=script, digest=digest, questions=key.questions, data=shown, minutes=minutes)


def _shown(key: Key, material: Material) -> dict[str, Any]:
    """All that the page knows: no name of a run, a method or an image."""
    draw, pictures = random.Random(key.study), sorted(key.pictures)
    rows: list[dict[str, object]] = []
    for name, item in key.items.items():
        rows.append({"id": name, "picture": item.picture, "prompt": item.prompt})
    rows += [
        {"id": name, "picture": draw.choice(pictures), "prompt": _instruction(answer), "check": True}
        for name, answer in key.checks.items()
    ]
    return {
        "study": key.study,
        "questions": {question.key: question.points for question in key.questions},
        "pictures": {name: material.pictures[key.pictures[name]] for name in pictures},
        "items": sorted(rows, key=lambda row: str(row["id"])),  # by names that say nothing
    }


def _instruction(answer: int) -> str:
    return f"This is no prompt but a check that you read: please choose {answer} for each question."


def _minutes(key: Key) -> int:
    return max(1, round((len(key.items) + len(key.checks)) * len(key.questions) * SECONDS / 60))


def _about(key: Key) -> list[str]:
    shared = sum(len(item.runs) > 1 for item in key.items.values())
    same = f" ({shared} of them found by several runs)" if shared else ""
    return [
        f"{len(key.pictures)} pictures, {len(key.runs)} runs: {', '.join(key.runs)}",
        f"{len(key.items)} prompts{same} and {len(key.checks)} attention checks: about {_minutes(key)} minutes a rater",
    ]
