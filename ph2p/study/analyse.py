"""Analyses the ratings of a study: agreement, means, paired tests, correlation with the metrics."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ph2p.errors import UserError
from ph2p.evaluation.formatting import visible
from ph2p.files import as_json, plain_disk_errors, write_whole
from ph2p.study.agreement import LEVELS, Estimate, agreement, counts_of
from ph2p.study.comparison import Pair, Table, correlations, mean_of, mean_ratings, pairs_of
from ph2p.study.key import SUFFIX, Key, read_key
from ph2p.study.ratings import Rater, read_raters

NEEDED = ("krippendorff", "matplotlib")  # what the extra ph2p[study] brings


@dataclass(frozen=True)
class Analysis:
    """What a study found. Of each question: alpha by level, each run's mean, the correlation with each metric."""

    key: Key
    raters: list[Rater]
    alpha: dict[str, dict[str, Estimate]]
    means: dict[str, dict[str, Estimate]]
    pairs: list[Pair]
    spearman: dict[str, dict[str, Estimate]]

    @property
    def kept(self) -> list[Rater]:
        return [rater for rater in self.raters if not rater.out]

    def as_dict(self) -> dict[str, Any]:
        """All values, without what single people rated."""
        people = [
            {"name": r.name, "rated": r.rated, "checks": r.asked, "missed": r.wrong, "out": r.out} for r in self.raters
        ]
        return {
            "study": self.key.study,
            "runs": dict(self.key.runs),
            "pictures": len(self.key.pictures),
            "prompts": len(self.key.items),
            "raters": people,
            "alpha": _plain(self.alpha),
            "means": _plain(self.means),
            "pairs": [asdict(pair) for pair in self.pairs],
            "spearman": _plain(self.spearman),
        }


def _plain(found: dict[str, dict[str, Estimate]]) -> dict[str, Any]:
    return {question: {name: asdict(estimate) for name, estimate in row.items()} for question, row in found.items()}


def analyse_study(key_file: Path, files: Sequence[Path], misses: int = 0, seed: int = 0) -> Analysis:
    """Analyse the ratings in `files`, without those of raters who miss more than `misses` attention checks.

    Raises UserError for files that do not fit the key, when nobody is left, and when the extra ph2p[study] is missing.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UserError(f"{' and '.join(missing)} not installed: pip install 'ph2p[study]'")
    if misses < 0:
        raise UserError(f"--misses {misses}: give a number from 0")
    key = read_key(key_file)
    raters = read_raters(files, key, misses)
    kept = [rater for rater in raters if not rater.out]
    if not kept:
        why = "; ".join(f"{visible(rater.name)}: {rater.out}" for rater in raters[:5])
        raise UserError(f"no rater is left of {len(raters)} ({why}); --misses N allows missed attention checks")
    tables: dict[str, Table] = {q.key: mean_ratings(kept, key, q.key) for q in key.questions}
    counts = {q.key: counts_of(kept, key, q.key, q.points) for q in key.questions}
    labels = list(key.runs)
    return Analysis(
        key=key,
        raters=raters,
        alpha={name: {level: agreement(count, level, seed) for level in LEVELS} for name, count in counts.items()},
        means={name: {run: mean_of(t[:, k], seed) for k, run in enumerate(labels)} for name, t in tables.items()},
        pairs=pairs_of(tables, labels, seed),
        spearman={name: correlations(table, key, seed) for name, table in tables.items()},
    )


def write_analysis(analysis: Analysis, output: Path) -> list[Path]:
    """Write `output`.json, .md and .svg and return them. Raises UserError."""
    from ph2p.study.plot import draw
    from ph2p.study.tables import markdown

    contents = {
        ".json": as_json(analysis.as_dict(), indent=1),
        ".md": markdown(analysis).encode(),
        ".svg": draw(analysis),
    }
    files = [output.with_name(output.name + suffix) for suffix in contents]
    with plain_disk_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        for file, content in zip(files, contents.values(), strict=True):
            write_whole(file, content)
    return files


def output_of(key_file: Path) -> Path:
    """Where an analysis is written unless one says otherwise: beside its key, `study-analysis` of `study.key.json`."""
    return key_file.with_name(f"{key_file.name.removesuffix(SUFFIX)}-analysis")
