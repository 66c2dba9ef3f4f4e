"""Find the prompts of images: `python train.py data=folder data.path=my_images`; `--help` shows every key."""

from ph2p.run.stopping import listen

listen()  # before the slow imports: a signal to stop that comes first would kill, and nobody would requeue the job

# ruff: noqa: E402
import os
import signal
import sys

from ph2p import __version__
from ph2p.config.arguments import read_arguments
from ph2p.errors import UserError


def complain(error: UserError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


def interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind it: Lightning's fit turns that into a SystemExit."""
    while error and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def dispatch(argv: list[str]) -> int:
    """Do what the command line asks for; returns the exit code, of a sweep the highest."""
    asked = read_arguments(argv)
    if asked.show:
        print(f"ph2p {__version__}" if asked.show == "version" else asked.shown())
        return 0
    codes = []
    for words in asked.runs():
        try:
            cfg = asked.load_one(words)
            from ph2p.run.engine import run

            codes.append(run(cfg))
        except UserError as error:  # the runs after this one go on all the same
            codes.append(complain(error))
    return max(codes)


def main(argv: list[str]) -> int:
    """Run; returns the exit code.

    0: all is well; 1: an image failed; 2: configuration, model or disk are at fault; 130: Ctrl-C; 143: SIGTERM.
    """
    try:
        code = dispatch(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has gone, as in `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again at its end
        return 128 + signal.SIGPIPE  # as a shell reports it
    except UserError as error:
        return complain(error)
    except (KeyboardInterrupt, SystemExit) as error:
        if not interrupted(error):
            raise
        print("stopped; the same command continues", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
