"""Target images of every kind. A new kind is a file here and one in `configs/data/`."""

from ph2p.data.captioned import CaptionedTargets
from ph2p.data.coco import CocoTargets
from ph2p.data.folder import FolderTargets
from ph2p.data.images import TargetError, from_pil, load_image
from ph2p.data.sets import PictureSet, together
from ph2p.data.shards import ShardTargets
from ph2p.data.targets import Target, Targets, slug
from ph2p.data.world import WorldTargets
from ph2p.files import printable

__all__ = [
    "CaptionedTargets",
    "CocoTargets",
    "FolderTargets",
    "PictureSet",
    "ShardTargets",
    "Target",
    "TargetError",
    "Targets",
    "WorldTargets",
    "from_pil",
    "load_image",
    "printable",
    "slug",
    "together",
]
