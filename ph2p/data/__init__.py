"""Target images of every kind, the fixed noise draws they are optimised on, and the data module that joins both."""

from ph2p.data.captioned import CaptionedTargets
from ph2p.data.coco import CocoTargets
from ph2p.data.draws import Draws, make_draws
from ph2p.data.folder import FolderTargets
from ph2p.data.images import TargetError, from_pil, load_image, printable
from ph2p.data.module import InversionData
from ph2p.data.scenes import WorldTargets
from ph2p.data.shards import ShardTargets
from ph2p.data.targets import Target, Targets, slug

__all__ = [
    "CaptionedTargets",
    "CocoTargets",
    "Draws",
    "FolderTargets",
    "InversionData",
    "ShardTargets",
    "Target",
    "TargetError",
    "Targets",
    "WorldTargets",
    "from_pil",
    "load_image",
    "make_draws",
    "printable",
    "slug",
]
