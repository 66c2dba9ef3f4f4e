"""Find the prompts of images: `python train.py data=folder data.path=my_images`; `--help` shows every key."""

import sys

import hydra
from omegaconf import DictConfig, OmegaConf

from ph2p.config import config_dir, load_config, register, validate
from ph2p.errors import UserError


@hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")
def with_hydra(cfg: DictConfig) -> None:
    """Serve what needs Hydra's own command line: --help, --cfg, --multirun."""
    from ph2p.engine import run

    OmegaConf.resolve(cfg)
    validate(cfg)
    sys.exit(run(cfg))


def main(argv: list[str]) -> int:
    """Run; returns 0, 1 when an image failed, 2 when the configuration or the model is at fault."""
    register()
    try:
        if any(argument.startswith("-") for argument in argv):
            with_hydra()
            return 0
        cfg = load_config(argv)
        from ph2p.engine import run  # after the check: a typo is answered at once, without loading torch

        return run(cfg)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
