"""`ph2p study`: a blind rating page, and the analysis of what raters send back."""

import argparse
from pathlib import Path

from ph2p.cli.parser import Parser


def study(argv: list[str]) -> int:
    """`ph2p study build RUN...` and `ph2p study analyse KEY RATINGS...`."""
    parser = Parser("ph2p study", description="Have people rate prompts without knowing which run found them.")
    parts = parser.add_subparsers(dest="part", required=True, metavar="build|analyse")
    build = parts.add_parser("build", help="write the page for raters and its key")
    build.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="what a run has written: outputs/NAME")
    build.add_argument("--output", type=Path, default=Path("study.html"), metavar="PAGE", help="default: study.html")
    build.add_argument("--seed", type=int, default=0, help="of the order, and of the pictures if there are more")
    build.add_argument("--pictures", type=int, metavar="N", help="at most so many; default: all")
    build.add_argument("--checks", type=int, metavar="N", help="attention checks; default: 2 to 6")
    build.add_argument("--points", type=int, default=5, choices=(5, 7), help="of each scale; default: 5")
    build.add_argument("--questions", nargs="+", default=[], metavar="NAME", help="some of them, or a YAML file")
    analyse = parts.add_parser("analyse", help="analyse what raters have sent back")
    analyse.add_argument("key", type=Path, metavar="KEY", help="study.key.json, as build wrote it")
    analyse.add_argument("ratings", nargs="+", type=Path, metavar="RATINGS", help=".csv or .json files of raters")
    analyse.add_argument("--output", type=Path, metavar="NAME", help="of the files; default: study-analysis")
    analyse.add_argument("--misses", type=int, default=0, metavar="N", help="attention checks a rater may miss")
    analyse.add_argument("--seed", type=int, default=0, help="of the intervals")
    arguments = parser.parse_args(argv)
    return _build_study(arguments) if arguments.part == "build" else _analyse_study(arguments)


def _build_study(arguments: argparse.Namespace) -> int:
    from ph2p.run.screen import Screen
    from ph2p.study.build import Plan, build_study
    from ph2p.study.questions import choose

    questions = choose(arguments.questions, arguments.points)
    plan = Plan(questions, arguments.seed, arguments.pictures, arguments.checks)
    built, screen = build_study(arguments.folders, arguments.output, plan), Screen()
    for note in built.notes:
        screen.say(note)
    screen.say(f"Send raters {built.page.resolve()}")
    screen.say(f"Keep {built.key.resolve()}: it says which run a prompt is from")
    return 0


def _analyse_study(arguments: argparse.Namespace) -> int:
    from ph2p.run.screen import Screen
    from ph2p.study.analyse import analyse_study, output_of, write_analysis
    from ph2p.study.tables import Shown

    analysis = analyse_study(arguments.key, arguments.ratings, arguments.misses, arguments.seed)
    files, screen = write_analysis(analysis, arguments.output or output_of(arguments.key)), Screen()
    screen.show(Shown(analysis))
    for file in files:
        screen.say(f"Wrote {file}")
    return 0
