"""`python -m ph2p.cli` is the `ph2p` command."""

from ph2p.cli import entry

if __name__ == "__main__":
    entry()
