"""Find the prompts of images: `python train.py data=folder data.path=my_images`; `--help` shows every key."""

from ph2p.run.stopping import listen

listen()  # before the slow imports: a signal to stop that comes first would kill, and nobody would requeue the job

# ruff: noqa: E402
import os
import signal
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ph2p.config.compose import check, config_dir, load_config, register
from ph2p.config.help import help_text
from ph2p.errors import UserError

codes: list[int] = []  # an exit code for every job that Hydra started


@hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")
def with_hydra(cfg: DictConfig) -> None:
    """Serve what needs Hydra's own command line: --cfg, --multirun."""
    from ph2p.run.engine import run

    try:
        check(cfg)
        if HydraConfig.get().mode == RunMode.MULTIRUN and cfg.trainer.get("devices") not in (1, "1"):
            # Each rank that Lightning starts would run the whole sweep again.
            raise UserError(f"trainer.devices={cfg.trainer.devices}: a sweep (-m) takes one device a job; give 1")
        codes.append(run(cfg))
    except UserError as error:  # the jobs after this one run all the same
        codes.append(complain(error))


def complain(error: UserError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


def interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind it: Lightning's fit turns that into a SystemExit."""
    while error and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def dispatch(argv: list[str]) -> int:
    """Do what the command line asks for; returns the exit code."""
    if {"-h", "--help"} & set(argv):
        print(help_text([argument for argument in argv if not argument.startswith("-")]))
        return 0
    if any(argument.startswith("-") for argument in argv):
        with_hydra()
        return max(codes, default=0)
    cfg = load_config(argv)
    from ph2p.run.engine import run

    return run(cfg)


def main(argv: list[str]) -> int:
    """Run; returns the exit code.

    0: all is well; 1: an image failed; 2: configuration, model or disk are at fault; 130: Ctrl-C; 143: SIGTERM.
    """
    register()
    codes.clear()
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
