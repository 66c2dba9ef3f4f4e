"""What `python train.py --help` prints: examples, the options of every group, every key, its value and its meaning."""

import re
from collections.abc import Sequence
from typing import Any, cast

from omegaconf import OmegaConf

from ph2p.config.compose import compose_config, config_dir
from ph2p.config.keys import comments, options, schema_keys
from ph2p.config.words import CONSTRUCTORS, Word

TEXT = """\
python train.py finds, for each image, a prompt of real words that makes a text-to-image model paint it.

  python train.py                                          the example images
  python train.py data=folder data.path=my_images          your pictures (png, jpg, webp, ...)
  python train.py data=coco data.root=/data/coco           a data set with captions; more in docs/data.md
  python train.py data=world data.count=8 data.objects=1   held-out scenes with ground truth
  python train.py method=ph2p method.budget=4000           another method, another budget
  python train.py generator=sd15 scorer=clip-vit-l-14      another model, and a CLIP model to judge by
  python train.py generator=folder generator.path=/models/sdxl scorer=folder scorer.path=/models/clip
  python train.py -m seed=0,1,2                            a sweep: several runs, a folder for each
  python train.py -m seed=0,1,2 name='seed-${seed}'        with names of your own

-h, --help: this. --version. -c job, --cfg job: the configuration as YAML. -m, --multirun: a sweep.
Text is taken as it stands: 'data.path=~/my pics (1)/a.png', in quotes for the shell alone.

Groups and their options (group=option takes one):

%s

Keys, their values here and their meanings (key=value changes one; null is no value):

%s"""
WIDTH = 34  # columns of key and value, where they are not longer


def help_text(words: Sequence[str] = ()) -> str:
    """The help, with the values that the words give; raises UserError for a wrong one."""
    groups = options(config_dir())
    width = max(map(len, groups))
    choices = [f"  {name:<{width}}  {', '.join(found)}" for name, found in groups.items()]
    values = cast(dict[str, Any], OmegaConf.to_container(compose_config(words)))
    return TEXT % ("\n".join(choices), "\n".join(_lines(values, _meanings(words), "")))


def _lines(node: dict[str, Any], meanings: dict[str, str], prefix: str) -> list[str]:
    """A line for each key: its value as YAML, and what it means."""
    lines = []
    for name, value in node.items():
        key = f"{prefix}{name}"
        inner = isinstance(value, dict) and bool(value)
        shown = "" if inner else " " + OmegaConf.to_yaml({"x": value}, resolve=False).strip().removeprefix("x:").strip()
        if isinstance(value, list):
            shown = f" [{', '.join(map(str, value))}]"
        line = f"  {'  ' * key.count('.')}{name}:{shown}"
        meaning = meanings.get(key, "")
        lines.append(f"{line:<{WIDTH}}  # {meaning}" if meaning else line)
        lines += _lines(value, meanings, f"{key}.") if inner else []
    return lines


def _meanings(words: Sequence[str]) -> dict[str, str]:
    """What each key means: the comments in the schema, and in the YAML files of what is no part of the schema."""
    found = {key: known.meaning for key, known in schema_keys().items()}
    for part in ("data", "trainer", *CONSTRUCTORS):
        group = part.partition(".")[0]
        chosen = [word.value for word in map(Word.of, words) if word.key == group]
        for file in sorted((config_dir() / group).glob("*.yaml"), key=lambda file: file.stem in chosen):
            text = file.read_text(encoding="utf-8")
            if part != group:  # what stands under `optimizer:`
                text = "".join(re.findall(r"^  .*\n", text.partition("\noptimizer:")[2], re.MULTILINE))
            found |= {f"{part}.{name}": meaning for name, meaning in comments(text).items()}
    return found
