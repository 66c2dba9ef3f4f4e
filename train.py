"""Find the prompts of images, as the `ph2p` command does: `python train.py data=folder data.path=my_images`."""

from ph2p.run.stopping import listen

listen()  # before the slow imports: a signal to stop that comes first would kill, and nobody would requeue the job

# ruff: noqa: E402
import sys

from ph2p.cli import leave, main

if __name__ == "__main__":
    leave(main(sys.argv[1:]))
