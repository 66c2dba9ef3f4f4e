"""Captions of pictures: a rival that inverts nothing, and a start for other methods. No sample of the denoiser.

A captioner gives each picture so many captions, the best first. With `method.captioner=world` the templates of the
embedded world's captions are filled in by CLIP; otherwise an image-to-text model of transformers writes them.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ph2p.data.templates import TEMPLATES, Template
from ph2p.errors import UserError
from ph2p.models.captioner import load_captioner
from ph2p.models.scorer import Scorer
from ph2p.models.vocabulary import Vocabulary

SWEEPS = 4  # over a template's places, at most
# captioner(pictures (B, 3, H, W) in [0, 1], their CLIP features (B, E), of a set `Batch.features`, count)
Captioner = Callable[[Tensor, Tensor, int], list[list[str]]]


def make_captioner(name: str, scorer: Scorer, vocabulary: Vocabulary, device: torch.device) -> Captioner:
    """The captioner that `method.captioner` names; raises UserError for a model that cannot be loaded."""
    if name == "world":
        return TemplateCaptioner(scorer, vocabulary)
    model = load_captioner(name, device)
    return lambda pictures, features, count: model(pictures, count)


class TemplateCaptioner:
    """The embedded world's caption templates, each filled in by coordinate ascent on the CLIP similarity.

    A template's places begin with the words that alone are most like the picture; then each in turn takes the word
    with which the whole caption is most like it, until nothing changes. Words that the vocabulary does not allow are
    left out, and with them the templates that need them. Raises UserError where no template is left.
    """

    def __init__(self, scorer: Scorer, vocabulary: Vocabulary) -> None:
        self.scorer = scorer
        words = {vocabulary.decode([token]) for token in vocabulary.allowed_ids.tolist()}
        self.slots: dict[Template, dict[str, list[str]]] = {}
        for template in TEMPLATES:
            slots = {
                place: [some for some in options if words.issuperset(some.split())]
                for place, options in template.slots().items()
            }
            if all(slots.values()):
                self.slots[template] = slots
        if not self.slots:
            raise UserError(
                "method.captioner=world: this model's vocabulary lacks the world's words; give a folder or hub id"
            )

    def __call__(self, pictures: Tensor, features: Tensor, count: int) -> list[list[str]]:
        """The `count` captions most like each picture, of all that were tried; the last again where there are fewer."""
        return [self._captions(picture, count) for picture in features]

    def _captions(self, picture: Tensor, count: int) -> list[str]:
        tried: dict[str, float] = {}
        for template, slots in self.slots.items():
            self._fill(template, slots, picture, tried)
        best = sorted(tried, key=tried.__getitem__, reverse=True)[:count]
        return best + best[-1:] * (count - len(best))

    def _fill(
        self, template: Template, slots: Mapping[str, Sequence[str]], picture: Tensor, tried: dict[str, float]
    ) -> None:
        """Coordinate ascent; notes what was tried in `tried`, {caption: similarity}."""
        words = {place: self._nearest(options, picture) for place, options in slots.items()}
        for _ in range(SWEEPS):
            before = dict(words)
            for place, options in slots.items():
                captions = {template.caption({**words, place: option}): option for option in options}
                new = [caption for caption in captions if caption not in tried]
                if new:
                    tried.update(zip(new, self._similarity(new, picture), strict=True))
                words[place] = captions[max(captions, key=tried.__getitem__)]
            if words == before:
                break

    def _nearest(self, options: Sequence[str], picture: Tensor) -> str:
        similarity = self._similarity(options, picture)
        return options[similarity.index(max(similarity))]

    def _similarity(self, texts: Sequence[str], picture: Tensor) -> list[float]:
        found: list[float] = (self.scorer.text_features(list(texts)) @ picture).tolist()
        return found


def caption_tokens(vocabulary: Vocabulary, caption: str, room: int) -> list[int]:
    """The tokens of a caption's words, as many whole words as fit into `room` tokens.

    A word with letters that the vocabulary lacks is left out.
    """
    ids: list[int] = []
    for word in caption.split():
        try:
            some = vocabulary.encode(word)
        except UserError:
            continue
        if len(ids) + len(some) > room:
            break
        ids += some
    return ids
