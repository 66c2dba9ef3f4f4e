"""The `ph2p` command, also `python train.py`: a thin door to `config/`, `run/`, `report/` and `study/`."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ph2p.cli.parser import Parser
from ph2p.cli.study import study
from ph2p.errors import UserError
from ph2p.run.stopping import listen, requested

if TYPE_CHECKING:
    from ph2p.config.schema import Config

OTHERS = """\
ph2p report DIR...   the page and table of results folders anew; --repaint, --remeasure: their renderings, their values;
                     --compare FILE: also a page that shows them side by side
ph2p study ...       a blind rating page of several results folders, and the analysis of what raters send back
ph2p score IMAGE TEXT...   what texts are worth for a picture, such as a found prompt and a sentence of your own
ph2p ui [keys]       a page in the browser: drop pictures, watch their prompts form, stop early, take the results away
ph2p apply NAME ...  what a prompt is good for, such as attention maps: where in a picture each of its words is seen
ph2p doctor [keys]   versions, devices, whether model and scorer are there, what the missing extras would bring
ph2p [keys]          inverts images, as python train.py does:
"""


def entry() -> NoReturn:
    """The installed command."""
    listen()  # before the slow imports: a signal to stop that comes first would kill
    leave(main(sys.argv[1:]))


def leave(code: int) -> NoReturn:
    """End the process; at once where it was told to stop: clearing away what libraries hold takes seconds."""
    if requested():
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):  # closed, or nobody is listening
                stream.flush()
        os._exit(code)
    sys.exit(code)


def main(argv: list[str]) -> int:
    """Do what the command line asks for; returns the exit code.

    0: all is well; 1: an image failed; 2: configuration, model or disk are at fault; 130: Ctrl-C; 143: SIGTERM.
    """
    try:
        command, words = (argv[0], argv[1:]) if argv[:1] and argv[0] in COMMANDS else ("", argv)
        code = COMMANDS[command](words)
        if sys.stdout:  # it may be closed
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has gone, as in `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again at its end
        return 128 + signal.SIGPIPE  # as a shell reports it
    except UserError as error:
        return _complain(error)
    except (KeyboardInterrupt, SystemExit) as error:
        if not _interrupted(error):
            raise
        print("stopped; the same command continues", file=sys.stderr)
        return 130


def _complain(error: UserError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


def _interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind it: Lightning's fit turns that into a SystemExit."""
    while error and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _invert(argv: list[str]) -> int:
    """`ph2p [group=option ...] [key=value ...]`: invert images."""
    parser = Parser("ph2p", add_help=False, allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    for flags in (("-h", "--help"), ("--version",), ("-m", "--multirun")):
        parser.add_argument(*flags, action="store_true")
    parser.add_argument("-c", "--cfg", choices=["job"])
    arguments = parser.parse_intermixed_args(argv)
    if arguments.help or arguments.version or arguments.cfg:
        print(_about(arguments), end="")
        return 0
    return _run(_jobs(arguments.words) if arguments.multirun else [_config(arguments.words)])


def _config(words: list[str]) -> "Config":
    from ph2p.config.compose import load_config

    return load_config(words)


def _jobs(words: list[str]) -> "list[Config]":
    """The configurations of a sweep: all are checked before the first is run."""
    from ph2p.config.sweep import jobs

    made = [_config(job) for job in jobs(words)]
    for cfg in made:
        if cfg.trainer.get("devices") not in (1, "1"):  # each rank would run the whole sweep again
            raise UserError(f"trainer.devices={cfg.trainer['devices']}: a sweep (-m) takes one device a run; give 1")
    return made


def _about(arguments: argparse.Namespace) -> str:
    """What is printed instead of a run: the help, the version or the configuration."""
    if arguments.version:
        from ph2p import __version__

        return f"ph2p {__version__}\n"
    if arguments.help:
        from ph2p.config.help import help_text

        return f"{OTHERS}\n{help_text(arguments.words)}\n"
    from omegaconf import OmegaConf

    from ph2p.config.compose import compose_config

    return OmegaConf.to_yaml(compose_config(arguments.words))


def _run(jobs: "list[Config]") -> int:
    """Run one job after another, also after one that failed; a signal to stop or Ctrl-C ends them all."""
    from ph2p.run.engine import run

    codes = []
    for job in jobs:
        try:
            codes.append(run(job))
        except UserError as error:
            codes.append(_complain(error))
        if codes[-1] >= 128:
            break
    return max(codes)


def _report(argv: list[str]) -> int:
    """`ph2p report DIR...`: the page and the table of results folders."""
    parser = Parser("ph2p report", description="Write the page of a results folder anew and show its table.")
    parser.add_argument("folders", nargs="+", metavar="DIR", help="what a run has written, such as outputs/NAME")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="also write a page that shows them side by side")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="do so with another value")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--repaint", action="store_true", help="first render its prompts anew")
    how.add_argument("--remeasure", action="store_true", help="first measure and render its prompts anew")
    arguments = parser.parse_args(argv)
    if arguments.set and not (arguments.repaint or arguments.remeasure):
        parser.error("--set goes with --repaint or --remeasure")
    if arguments.compare and len(arguments.folders) < 2:
        parser.error("--compare goes with two or more folders")
    from ph2p.report.records import read_results
    from ph2p.report.table import summary_table, write_report
    from ph2p.run.screen import Screen

    screen = Screen()
    for folder in map(Path, arguments.folders):
        if not (folder / "results").is_dir():
            raise UserError(f"{folder}: no results folder; give one that a run has written, such as outputs/NAME")
        if arguments.repaint or arguments.remeasure:
            from ph2p.run.remeasure import remeasure, repaint

            (repaint if arguments.repaint else remeasure)(folder, arguments.set)
        page = write_report(folder)
        screen.show(summary_table(read_results(folder)))
        screen.say(f"Open {page.resolve()}")
    if arguments.compare:
        from ph2p.report.comparison import write_comparison

        page = write_comparison([Path(folder) for folder in arguments.folders], arguments.compare)
        screen.say(f"Compared in {page.resolve()}")
    return 0


def _score(argv: list[str]) -> int:
    """`ph2p score IMAGE TEXT...`: any text's loss for a picture."""
    parser = Parser("ph2p score", description="Measure what texts are worth for a picture, on the same draws.")
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("texts", nargs="+", metavar="TEXT", help='such as "a red square on a blue background"')
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for a run")
    arguments = parser.parse_args(argv)
    from ph2p.api import score
    from ph2p.evaluation.score import as_lines
    from ph2p.run.screen import Screen

    screen = Screen()
    for line in as_lines(score(arguments.image, arguments.texts, arguments.set)):
        screen.say(line)
    return 0


def _apply(argv: list[str]) -> int:
    """`ph2p apply NAME ...`: an application of a prompt."""
    from ph2p.applications.request import Request, add_arguments

    parser = Parser("ph2p apply", description="Use a prompt: write a page, and a JSON file beside it.")
    add_arguments(parser)
    request = Request.of(parser.parse_args(argv))
    from ph2p.api import following, load_inverter
    from ph2p.applications.command import Models, apply, write
    from ph2p.run.screen import Screen

    inverter, screen = load_inverter(request.words), Screen()
    shown = apply(request, Models(inverter.generator, inverter.scorer, inverter.cfg, following(inverter)))
    for line in shown.lines:
        screen.say(line)
    for file in write(request, shown):
        screen.say(f"Wrote {file}")
    return 0


def _doctor(argv: list[str]) -> int:
    """`ph2p doctor [key=value ...]`: whether everything is there."""
    parser = Parser("ph2p doctor", description="Look whether everything is there that a run with these keys needs.")
    parser.add_argument("words", nargs="*", metavar="key=value", help="as for a run, such as generator=sd15")
    from ph2p.run.doctor import examine

    return examine(parser.parse_args(argv).words)


def _ui(argv: list[str]) -> int:
    """`ph2p ui [key=value ...]`: the live page."""
    parser = Parser("ph2p ui", description="A page on which pictures are dropped and their prompts can be watched.")
    parser.add_argument(
        "words", nargs="*", metavar="key=value", help="as for a run, such as generator=sd15 trainer=gpu"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; default: this machine alone")
    parser.add_argument("--port", type=int, default=0, help="default: the first free one from 7860 on")
    parser.add_argument("--browser", action="store_true", help="open a browser")
    arguments = parser.parse_intermixed_args(argv)
    if find_spec("gradio") is None:
        raise UserError('ph2p ui needs Gradio: pip install "ph2p[ui]"')
    from ph2p.cli.page import launch
    from ph2p.run.live import Live
    from ph2p.run.screen import Screen

    launch(Live(arguments.words), arguments.host, arguments.port, arguments.browser, Screen().say)
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "": _invert,
    "report": _report,
    "study": study,
    "score": _score,
    "ui": _ui,
    "apply": _apply,
    "doctor": _doctor,
}
