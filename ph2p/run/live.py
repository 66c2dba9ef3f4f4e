"""What the live page shows and steers: pictures in a queue, inverted one after another, and how far each is.

It knows nothing of the page: `Live.add` takes pictures and words of the command line, a thread inverts them, and a
`Job` says at any time how its picture stands. What was found is in an ordinary results folder.
"""

import itertools
import queue
import threading
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from ph2p.config.compose import load_config
from ph2p.config.schema import Config
from ph2p.data import Target, TargetError, printable
from ph2p.data.images import read_image
from ph2p.errors import UserError
from ph2p.evaluation.result import InversionResult
from ph2p.files import write_whole
from ph2p.inversion.session import BestSoFar, Session
from ph2p.inverter import Inverter
from ph2p.report.records import read_results
from ph2p.report.table import write_report
from ph2p.run.build import load_inverter, quiet_libraries, with_config
from ph2p.run.results import ResultsFolder
from ph2p.run.session import part_done
from ph2p.run.work import write

UPLOADS = "uploads"  # in the results folder: the pictures as they came
WAITING, WORKING, DONE, FAILED, DROPPED = "waiting", "working", "done", "failed", "dropped"
SURE = 0.03  # of the work, from which on its remaining time can be told


class Dropped(Exception):
    """The picture is no longer wanted."""


@dataclass
class Job:
    """A picture and what is known of it so far; the thread that inverts it writes here, the page only reads."""

    image_id: str
    picture: Path
    cfg: Config
    state: str = WAITING
    stage: str = "waiting"
    stages: dict[str, float] = field(default_factory=dict)  # how much of each is done, in [0, 1]
    found: list[BestSoFar] = field(default_factory=list)  # the best so far after each epoch and round
    began: float = 0.0
    result: InversionResult | None = None
    error: str = ""
    finish: bool = False  # end early, with the best so far
    drop: bool = False  # end at once, with nothing

    @property
    def part(self) -> float:
        """How much of the work is done, in [0, 1]."""
        return part_done(self.stages) if self.stages else 0.0

    @property
    def seconds_left(self) -> float | None:
        """About how long it will take still; None where that cannot be told yet."""
        part = self.part
        return (time.monotonic() - self.began) * (1 - part) / part if part > SURE else None


class LiveSession(Session):
    """Tells a `Job` of its progress and asks it whether to end."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job

    def report(self, stage: str, done: int, total: int) -> None:
        self.job.stages[stage] = done / total
        self.job.stage = stage

    def hear(self, best: Callable[[], list[BestSoFar]]) -> None:
        self.job.found += best()

    def enough(self) -> bool:
        return self.job.finish

    def check_stop(self) -> None:
        if self.job.drop:
            raise Dropped


class Live:
    """A queue of pictures and the thread that inverts them; `words` are the command line's, for all of them.

    Raises UserError where the words are wrong or the results folder cannot be written.
    """

    def __init__(self, words: Sequence[str], load: Callable[[Config], Inverter] = load_inverter) -> None:
        self.words, self._load = ["name=live", *words], load
        self._lock = threading.Lock()  # of the jobs, of the archive, and of Hydra, which has one state for the process
        cfg = load_config(self.words)
        self.model = cfg.generator.name  # what pictures get that name no other
        self.folder = (Path(cfg.output) / cfg.name).absolute()
        ResultsFolder(self.folder, cfg, force=True).close()  # what stands in the way is said now
        (self.folder / UPLOADS).mkdir(parents=True, exist_ok=True)
        known = len(read_results(self.folder))
        self._numbers = itertools.count(known + 1)
        self.jobs: list[Job] = []
        self._inverter: Inverter | None = None
        self._queue: queue.SimpleQueue[Job] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="inversions").start()

    def add(self, pictures: Sequence[str | Path], words: Sequence[str] = ()) -> list[Job]:
        """Put pictures into the queue, with further words of the command line; raises UserError for wrong ones."""
        with self._lock:
            cfg = load_config([*self.words, *words])
            places = [Path(picture) for picture in pictures]
            jobs = [Job(f"{next(self._numbers):03d}-{printable(place.name)}", place, cfg) for place in places]
            self.jobs += jobs
        for job in jobs:
            self._queue.put(job)
        return jobs

    @property
    def working(self) -> Job | None:
        """The picture that is being inverted."""
        return next((job for job in list(self.jobs) if job.state == WORKING), None)

    def finish_early(self) -> None:
        """Have the picture at hand end with the best prompt so far."""
        if job := self.working:
            job.finish = True

    def drop_waiting(self) -> None:
        """Take all waiting pictures from the queue."""
        for job in list(self.jobs):
            job.drop = job.drop or job.state == WAITING

    def close(self) -> None:
        """Want nothing more."""
        for job in list(self.jobs):
            job.drop = True

    def lines(self) -> Path:
        """The records as one file of JSON lines."""
        path = self.folder / "prompts.jsonl"
        parts = sorted((self.folder / "results").glob("part-*.jsonl"))
        write_whole(path, b"".join(part.read_bytes() for part in parts))
        return path

    def archive(self) -> Path:
        """The results folder as a zip, its page written anew; the uploads stay: it has the targets."""
        path = self.folder / "results.zip"
        with self._lock:  # several tabs may ask for it
            write_report(self.folder)
            partial = path.with_suffix(".part")
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
                for file in self._shown():
                    archive.write(file, file.relative_to(self.folder))
            partial.replace(path)
        return path

    def _shown(self) -> Iterator[Path]:
        """The files of the results folder that belong into the archive."""
        for name in ("index.html", "config.yaml", "results", "images", "candidates", "settings"):
            place = self.folder / name
            yield from filter(Path.is_file, [place, *sorted(place.rglob("*"))])

    # --- the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        quiet_libraries()
        while True:
            job = self._queue.get()
            try:
                if not job.drop:
                    self._invert(job)
                    job.state = DONE
                    continue
            except Dropped:
                pass
            except UserError as error:
                job.error = str(error)
            except Exception as error:  # the page outlives it; the terminal says where it was
                traceback.print_exc()
                job.error = f"{type(error).__name__}: {error}"
            job.state = FAILED if job.error else DROPPED
            if job.error:
                self._record(job)

    def _invert(self, job: Job) -> None:
        job.state, job.stage, job.began = WORKING, "loading the model", time.monotonic()
        inverter = self._inverter_for(job.cfg)
        fit = job.cfg.data.get("fit", "crop")
        read = read_image(job.picture, job.image_id, inverter.generator.image_size, fit)
        target = Target(job.image_id, job.image_id, read.image, notes=read.notes)
        job.began = time.monotonic()
        (result,) = inverter([target], LiveSession(job))
        if isinstance(result, TargetError):
            raise result
        with closing(ResultsFolder(self.folder, job.cfg, force=True)) as results:
            write(result, results)
        job.result = result

    def _record(self, job: Job) -> None:
        """Write down that a picture failed, as a run does."""
        record = {"image_id": job.image_id, "source": job.image_id, "status": "failed", "error": job.error}
        try:
            with closing(ResultsFolder(self.folder, job.cfg, force=True)) as results:
                results.append(record)
        except UserError as error:  # a full disk, say, which may be why it failed
            job.error = f"{job.error}; {error}"

    def _inverter_for(self, cfg: Config) -> Inverter:
        """The models that are loaded, if they are the ones that are asked for, or these."""
        before = self._inverter
        same = before and all(
            getattr(before.cfg, part) == getattr(cfg, part) for part in ("generator", "scorer", "trainer")
        )
        if before and same:
            return with_config(before, cfg)
        self._inverter = None  # its memory is free before the next model takes it
        del before
        self._inverter = self._load(cfg)
        return self._inverter
