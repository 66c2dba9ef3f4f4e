"""What `python train.py --help` prints: examples, the options of every group, every key and what it is now."""

from omegaconf import OmegaConf

from ph2p.config.compose import compose_config, config_dir

TEXT = """\
python train.py finds, for each image, a prompt of real words that makes a text-to-image model paint it.

  python train.py                                          the example images
  python train.py data=folder data.path=my_images          your pictures (png, jpg, webp, ...)
  python train.py data=coco data.root=/data/coco           a data set with captions; more in docs/data.md
  python train.py data=world data.count=8 data.objects=1   held-out scenes with ground truth
  python train.py method=ph2p method.budget=4000           another method, another budget
  python train.py generator=sd15 scorer=clip-vit-l-14      another model, and a CLIP model to judge by
  python train.py generator=folder generator.path=/models/sdxl scorer=folder scorer.path=/models/clip
  python train.py -m seed=0,1,2 name='seed-${seed}'        several runs

Groups and their options (group=option takes one):

%s

Keys and their values (key=value changes one; ph2p/config/schema.py says what each means):

%s"""


def help_text(overrides: list[str]) -> str:
    """The help, with the values that the overrides give; raises UserError for a wrong one."""
    groups = sorted(path for path in config_dir().iterdir() if path.is_dir())
    width = max(len(group.name) for group in groups)
    options = {group.name: ", ".join(sorted(path.stem for path in group.glob("*.yaml"))) for group in groups}
    lines = [f"  {name:<{width}}  {choices}" for name, choices in options.items()]
    values = OmegaConf.to_yaml(compose_config(overrides))
    return TEXT % ("\n".join(lines), "\n".join(f"  {line}".rstrip() for line in values.splitlines()))
