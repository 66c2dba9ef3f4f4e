"""The captions of the embedded world as templates: a choice of words in each place of a sentence."""

from collections.abc import Mapping
from dataclasses import dataclass

from ph2p.world.captions import canonical_caption
from ph2p.world.scenes import COLOUR_WORDS, FILLS, PLACES, RELATIONS, SHAPES, SIZES, Pictured, Scene, Thing
from ph2p.world.sprites import THINGS

DRAWN = {"size": SIZES, "fill": FILLS, "colour": COLOUR_WORDS, "shape": SHAPES}
PICTURED = {"size": SIZES, "noun": THINGS}


@dataclass(frozen=True)
class Template:
    """The caption of a scene whose objects are of these kinds: drawn shapes or pictured things, one or two of them."""

    kinds: tuple[str, ...]

    def slots(self) -> dict[str, tuple[str, ...]]:
        """What may stand in each place, by the place's name: `0 size`, `0 noun`, ..., `where`, `background`."""
        found = {
            f"{number} {name}": tuple(words)
            for number, kind in enumerate(self.kinds)
            for name, words in (DRAWN if kind == "drawn" else PICTURED).items()
        }
        return found | {
            "where": tuple(RELATIONS if len(self.kinds) == 2 else PLACES),
            "background": tuple(COLOUR_WORDS),
        }

    def caption(self, words: Mapping[str, str]) -> str:
        """The sentence with a word for each place."""
        things = tuple(self._thing(number, words) for number in range(len(self.kinds)))
        pair = len(things) == 2
        where = words["where"]
        place, relation = (None, where) if pair else (where, None)
        return canonical_caption(Scene(things, words["background"], (0, 0, 0), place, relation))

    def _thing(self, number: int, words: Mapping[str, str]) -> Thing | Pictured:
        own = {name.partition(" ")[2]: word for name, word in words.items() if name.startswith(f"{number} ")}
        if self.kinds[number] == "drawn":
            return Thing(own["shape"], own["colour"], own["size"], own["fill"], (0, 0), 1, (0, 0, 0))
        return Pictured(own["noun"], "", own["size"], (0, 0), 1)


KINDS = ("drawn", "pictured")
TEMPLATES = tuple(Template(kinds) for kinds in (*((one,) for one in KINDS), *((a, b) for a in KINDS for b in KINDS)))
