"""A run from configuration to results folder: check, load, invert batch after batch, write, report."""

import signal
from collections.abc import Callable
from pathlib import Path

from ph2p.config.checks import parse_shard
from ph2p.config.schema import Config
from ph2p.inverter import Inverter
from ph2p.report.records import read_results
from ph2p.report.table import summary_table, write_report
from ph2p.run import stopping
from ph2p.run.assignment import belongs
from ph2p.run.build import build, check_optimizer, load_inverter, make_targets, quiet_libraries
from ph2p.run.logs import RunLog, make_loggers
from ph2p.run.ranks import Ranks
from ph2p.run.results import ResultsFolder
from ph2p.run.screen import Screen
from ph2p.run.sidecars import check_sidecars
from ph2p.run.standing import Standing
from ph2p.run.work import Work, check_checkpoints

Load = Callable[[Config], Inverter]


def run(cfg: Config, load: Load = load_inverter, screen: Screen | None = None) -> int:
    """Invert this rank's images of the configuration; returns the exit code.

    What is quick comes first: keys, devices, pictures, the results folder; then the other ranks are started, and
    then each loads the model, by `load`.

    0: all is well; 1: an image failed or is missing; 128 + n: stopped by signal n, 143 for SIGTERM. Images that an
    earlier run of the same configuration finished are skipped. Raises UserError for what stops the whole run; what
    was finished until then stays.
    """
    quiet_libraries()
    ranks = build("trainer", lambda: Ranks(cfg.trainer))
    screen = screen or Screen(quiet=ranks.rank > 0)
    check_optimizer(cfg.method)
    loggers = build("logger", lambda: make_loggers(cfg))
    targets = make_targets(cfg)
    if cfg.sidecars:
        check_sidecars(targets.ids)
    results = _open_results(cfg, ranks)
    log = None
    try:
        check_checkpoints(cfg, results)
        with ranks:  # from here on there are several, where there are to be
            with stopping.at_once():
                inverter = load(cfg)
            targets.image_size = inverter.generator.image_size
            log = build("logger", lambda: RunLog(results.log, loggers, results.settings))
            work = Work(cfg, inverter, targets, results, screen, log)
            _invert(work, ranks)
            codes = ranks.wait()
            return int(work.failed > 0) if ranks.is_child else _summarise(work, ranks, codes)
    except stopping.Stopped as stopped:
        return _stop(stopped, results, screen)
    finally:
        if log:
            log.close()
        results.close()


def _open_results(cfg: Config, ranks: Ranks) -> ResultsFolder:
    """This rank's part of the results folder."""
    shard = parse_shard(cfg.shard)
    part = f"part-{ranks.rank:05d}" if shard == (0, 1) else f"part-{shard[0]}-{ranks.rank:05d}"
    return ResultsFolder(Path(cfg.output) / cfg.name, cfg, part, first=ranks.rank == 0)


def _invert(work: Work, ranks: Ranks) -> None:
    """Say what is to be done, and do this rank's part of it."""
    shard = parse_shard(work.cfg.shard)
    ids = work.targets.ids
    mine = {name: k for k, name in enumerate(ids) if belongs(name, shard, ranks.rank, ranks.world)}
    state = work.look(mine)
    if ranks.rank == 0:
        skipped = [f"{name}: {reason}" for name, reason in work.targets.skipped]
        work.results.write_passed_over(skipped)
        _announce(work, ranks, state, sum(belongs(name, shard) for name in ids))
    for image_id, reason in state.anew.items():
        work.screen.say(f"{image_id}: {reason}; it is inverted anew")
    work.do(mine, state)


def _announce(work: Work, ranks: Ranks, state: Standing, wanted: int) -> None:
    before = f" ({len(state.done)} finished before)" if state.done else ""
    place = f" on {ranks.world} ranks" if ranks.world > 1 else ""
    method, folder = work.cfg.method.name, work.results.folder
    work.screen.say(f"Inverting {wanted} images{place}{before} with {method}; results in {folder}/")
    if advice := work.cfg.method.advice:
        work.screen.say(advice)
    if count := len(work.targets.skipped):
        work.screen.say(f"{count} {_files(count)} passed over, listed in {folder}/passed-over.txt")


def _files(count: int) -> str:
    return "file was" if count == 1 else "files were"


def _stop(stopped: stopping.Stopped, results: ResultsFolder, screen: Screen) -> int:
    """End a run that was told to: what is finished is written, the batch at hand is in its checkpoint."""
    queued = stopping.requeue(results.requeue_mark) if stopped.number == signal.SIGUSR1 else None
    if queued is None:
        screen.say("stopped; the same command continues")
    else:
        again = "the job is back in its queue" if queued else "scontrol could not requeue it"
        screen.say(f"{again}; the same command continues")
    return 0 if queued else int(stopped.code or 0)


def _summarise(work: Work, ranks: Ranks, codes: dict[int, int]) -> int:
    """Write the page and, on the first rank, say how it went; returns the exit code.

    Where a cluster has started the ranks, the first one and the last to end write the page, so that it shows
    everything; and one that failed images only says so by its exit code if it is the last: torchrun would stop the
    others.
    """
    results, screen = work.results, work.screen
    shard = parse_shard(work.cfg.shard)
    wanted = {name for name in work.targets.ids if belongs(name, shard)}
    records = [record for record in read_results(results.folder) if record["image_id"] in wanted]
    failed, missing = sum(record.get("status") != "ok" for record in records), len(wanted) - len(records)
    if not failed and not missing:
        results.remove_checkpoints()
    for rank, code in codes.items():
        if code not in (0, 1):
            screen.say(f"rank {rank} ended with exit code {code}")
    page = results.folder / "index.html"
    if ranks.rank == 0 or not missing:
        page = write_report(results.folder)
    elsewhere = ranks.world > 1 and not ranks.leads
    screen.show(summary_table(records))
    rest = f", {len(work.targets.skipped)} files passed over" if work.targets.skipped else ""
    if missing:
        rest += (
            f", {missing} still with other ranks" if elsewhere else f", {missing} missing: the same command continues"
        )
    screen.say(f"{len(records) - failed} images inverted, {failed} failed{rest}. Open {page.resolve()}")
    return int(bool(failed or missing) and not (elsewhere and missing))
