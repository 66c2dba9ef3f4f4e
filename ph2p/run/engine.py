"""A run from configuration to results folder: load, invert batch after batch, write, report."""

import signal
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ph2p.config.schema import Config, parse_shard
from ph2p.config.settings import settings
from ph2p.data import Target, TargetError, Targets
from ph2p.errors import UserError
from ph2p.evaluation.result import InversionResult, as_candidates, as_record, pictures
from ph2p.inverter import Inverter
from ph2p.report.records import read_results
from ph2p.report.table import summary_table, write_report
from ph2p.run import stopping
from ph2p.run.build import build, load_inverter, quiet_libraries
from ph2p.run.checkpoint import BatchCheckpoint
from ph2p.run.logs import RunLog, make_loggers
from ph2p.run.ranks import Ranks, requeue
from ph2p.run.results import ResultsFolder
from ph2p.run.session import RunSession
from ph2p.run.shares import batches, share

console = Console()


def run(cfg: Config) -> int:
    """Invert this rank's images of the configuration; returns the exit code.

    0: all is well; 1: an image failed or is missing; 128 + n: stopped by signal n, 143 for SIGTERM. Images that an
    earlier run of the same configuration finished are skipped. Raises UserError for what stops the whole run; what
    was finished until then stays.
    """
    quiet_libraries()
    ranks = build("trainer", lambda: Ranks(cfg.trainer))
    inverter = load_inverter(cfg)
    targets = build("data", lambda: instantiate(cfg.data, image_size=inverter.generator.image_size))
    shard = parse_shard(cfg.shard)
    part = f"part-{ranks.rank:05d}" if shard == (0, 1) else f"part-{shard[0]}-{ranks.rank:05d}"
    results = ResultsFolder(Path(cfg.output) / cfg.name, cfg, part)
    log = None
    try:
        with ranks:  # from here on there are several, where there are to be
            log = build("logger", lambda: RunLog(results.log, make_loggers(cfg)))
            _invert_share(inverter, targets, share(len(targets), shard, ranks.rank, ranks.world), results, ranks, log)
            codes = ranks.wait()
            return _summarise(results, {targets.ids[k] for k in share(len(targets), shard, 0, 1)}, ranks, codes)
    except stopping.Stopped as stopped:
        return _stop(stopped, results)
    finally:
        results.close()
        if log:
            log.close()


def _stop(stopped: stopping.Stopped, results: ResultsFolder) -> int:
    """End a run that was told to: what is finished is written, the batch at hand is in its checkpoint."""
    queued = requeue(results.requeue_mark) if stopped.number == signal.SIGUSR1 else None
    again = {True: "the job is back in its queue", False: "scontrol could not requeue it"}.get(queued, "stopped")
    console.print(f"{again}; the same command continues", soft_wrap=True)
    return 0 if queued else int(stopped.code or 0)


def _invert_share(
    inverter: Inverter, targets: Targets, mine: range, results: ResultsFolder, ranks: Ranks, log: RunLog
) -> None:
    """Invert what is left of this rank's images, the batch that was interrupted first."""
    cfg, index = inverter.cfg, {targets.ids[k]: k for k in mine}
    records = [record for record in read_results(results.folder) if record["image_id"] in index]
    done = {record["image_id"] for record in records if record["status"] == "ok"}
    errors = {record["image_id"]: record["error"] for record in records if record["status"] != "ok"}
    checkpoint = BatchCheckpoint(results.checkpoint, settings(cfg))
    begun = _begun(checkpoint, cfg, targets)
    todo = batches(list(index), begun, done, errors.keys(), cfg.batch_size)
    if ranks.rank == 0:
        before = f" ({len(done)} finished before)" if done else ""
        place = f" on {ranks.world} ranks" if ranks.world > 1 else ""
        wanted = len(share(len(targets), parse_shard(cfg.shard), 0, 1))
        console.print(f"Inverting {wanted} images{place}{before} with {cfg.method.name}; results in {results.folder}/")
    with _progress_bar(ranks.rank) as bar:
        task = bar.add_task("starting", total=sum(map(len, todo)))
        for batch in todo:
            _run_batch(
                inverter, targets, {i: index[i] for i in batch}, done, errors, results, checkpoint, bar, task, log
            )
    checkpoint.finish()  # it may be left from another number of ranks


def _begun(checkpoint: BatchCheckpoint, cfg: Config, targets: Targets) -> list[str]:
    """The image ids of the interrupted batch: that of `ckpt_path`, or else our own."""
    begun = checkpoint.read(force=cfg.resume == "force")
    if cfg.ckpt_path is None or begun:
        return begun
    begun = checkpoint.read(Path(cfg.ckpt_path))
    for image_id in sorted(set(begun) - set(targets.ids)):
        raise UserError(f"ckpt_path={cfg.ckpt_path}: its image {image_id} is not among the images of this run")
    return begun


def _run_batch(
    inverter: Inverter,
    targets: Targets,
    indices: dict[str, int],
    done: set[str],
    errors: dict[str, str],
    results: ResultsFolder,
    checkpoint: BatchCheckpoint,
    bar: Progress,
    task: TaskID,
    log: RunLog,
) -> None:
    """Load, invert and write one batch; an image that cannot be read or inverted fails alone.

    A batch that was interrupted while it was written is the same again, and only what is not `done` is written.
    """
    stopping.check()
    finished = bar.tasks[task].completed
    batch: list[Target] = []

    def fail(image_id: str, source: str, error: TargetError) -> None:
        bar.console.print(f"[red]failed[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        if errors.get(image_id) != str(error):  # else it says so already
            results.append({"image_id": image_id, "source": source, "status": "failed", "error": str(error)})

    for image_id, index in indices.items():
        try:
            batch.append(targets.load(index))
        except TargetError as error:
            fail(image_id, "", error)

    def report(share: float, what: str) -> None:
        doing = f"{what} {len(batch)} image{'s' if len(batch) > 1 else ''}"
        bar.update(task, completed=finished + share * len(indices), description=doing)

    if batch:
        checkpoint.begin([target.image_id for target in batch])
        for target, result in zip(
            batch, inverter(batch, RunSession(inverter.cfg.trainer, checkpoint, log, report)), strict=True
        ):
            if isinstance(result, TargetError):
                fail(target.image_id, target.source, result)
            elif target.image_id not in done:
                write(result, results)
        checkpoint.finish()
    bar.update(task, completed=finished + len(indices))


def write(result: InversionResult, results: ResultsFolder) -> None:
    """Write an image's pictures and candidates, and then its record."""
    image_id, found = result.image_id, pictures(result)
    files: dict[str, Any] = {"target": results.write_picture(image_id, "target", found.pop("target"))}
    for key, some in found.items():  # renderings, caption_renderings
        name = key.removesuffix("s").replace("_", "-")
        files[key] = [results.write_picture(image_id, f"{name}-{k}", p) for k, p in enumerate(some)]
    files["candidates"] = results.write_candidates(image_id, as_candidates(result))
    results.append(as_record(result) | {"files": files})


def _progress_bar(rank: int) -> Progress:
    """The bar of the first rank; the others only say which images failed."""
    columns = (
        TextColumn("{task.description:>24}"),
        BarColumn(),
        TextColumn("{task.completed:.1f}/{task.total} images"),
    )
    timing = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    return Progress(*columns, *timing, console=console, disable=rank > 0)


def _summarise(results: ResultsFolder, wanted: set[str], ranks: Ranks, codes: dict[int, int]) -> int:
    """Write the page and, on the first rank, say how it went; returns the exit code.

    Each rank that ends writes the page anew, so that the last one's shows everything. Where a cluster has started
    the ranks, one that failed images only says so by its exit code if it is the last: torchrun would stop the others.
    """
    page = write_report(results.folder)
    records = [record for record in read_results(results.folder) if record["image_id"] in wanted]
    failed, missing = sum(record["status"] != "ok" for record in records), len(wanted) - len(records)
    if not failed and not missing:
        results.remove_checkpoints()
    elsewhere = ranks.world > 1 and not codes
    for rank, code in codes.items():
        if code not in (0, 1):
            console.print(f"rank {rank} ended with exit code {code}")
    if ranks.rank == 0:
        console.print(summary_table(records))
        rest = ""
        if missing:
            rest = (
                f", {missing} still with other ranks"
                if elsewhere
                else f", {missing} missing: the same command continues"
            )
        done = f"{len(records) - failed} images inverted, {failed} failed{rest}"
        console.print(f"{done}. Open {page.resolve()}", soft_wrap=True)
    return int(bool(failed or missing) and not (elsewhere and missing))


# --- Python ------------------------------------------------------------------------------------------------------
