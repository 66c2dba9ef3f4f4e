"""Captions of the embedded world's scenes: canonical or as people might write them, and the words that count."""

import numpy as np

from ph2p.world.scenes import COLOUR_WORDS, FILLS, PLACES, RELATIONS, SHAPES, SIZES, Pictured, Scene, Thing
from ph2p.world.sprites import THINGS

MEDIA = ("picture", "image", "drawing", "painting", "sketch", "illustration", "photo", "rendering")
GROUNDS = ("background", "backdrop")
PLURALS = ("cherries", "eyeglasses", "fries", "glasses", "grapes", "scissors")


def canonical_caption(scene: Scene) -> str:
    """Name every attribute in one fixed order: `a large striped red square at the top on a blue background`."""
    nouns = [_a(" ".join(words[0] for words in attributes(thing))) for thing in scene.things]
    where = f"{_relation_phrase(scene.relation)} {nouns[1]}" if scene.relation else f"at the {scene.place}"
    return f"{nouns[0]} {where} on {_article(scene.background)} {scene.background} background"


def attribute_words(scene: Scene) -> tuple[frozenset[str], ...]:
    """List the ground truth: for every attribute of the scene the set of words that name it."""
    groups = [words for t in scene.things for words in attributes(t)]
    where = [word.split()[0] for word in where_words(scene)]
    return tuple(frozenset(g) for g in [*groups, where, COLOUR_WORDS[scene.background]])


def where_words(scene: Scene) -> tuple[str, ...]:
    """The words for the scene's place, or for the relation of its objects, canonical ones first."""
    return RELATIONS[scene.relation] if scene.relation else PLACES[scene.place or "center"]


def attributes(thing: Thing | Pictured) -> list[tuple[str, ...]]:
    """The words for each attribute of an object, canonical ones first; the last attribute is its noun."""
    if isinstance(thing, Pictured):
        return [SIZES[thing.size], THINGS[thing.noun]]
    return [SIZES[thing.size], FILLS[thing.fill], COLOUR_WORDS[thing.colour], SHAPES[thing.shape]]


def random_caption(scene: Scene, rng: np.random.Generator, keep: float = 0.75) -> str:
    """Describe a scene as a person might: sentences and tag lists, synonyms, each attribute named or not.

    `keep` is the probability that an attribute is named at all; a quarter of the captions name every one.
    """
    keep = 1.0 if rng.random() < 0.25 else keep
    style = rng.choice(["sentence", "statement", "tags"], p=[0.5, 0.15, 0.35])
    return {"sentence": _sentence, "statement": _statement, "tags": _tags}[style](scene, rng, keep)


def _sentence(scene: Scene, rng: np.random.Generator, keep: float) -> str:
    nouns = [_noun_phrase(t, rng, keep) for t in scene.things]
    text = _with_article(nouns[0], rng)
    if scene.relation:
        text += f" {_relation_phrase(_pick(rng, where_words(scene)))} {_with_article(nouns[1], rng)}"
    elif rng.random() < keep:
        text += f" {_place_phrase(scene, rng)}"
    if rng.random() < keep:
        ground = _pick(rng, COLOUR_WORDS[scene.background]) + " " + _pick(rng, GROUNDS)
        text += f" {_pick(rng, ('on', 'against', 'with'))} {_with_article(ground, rng)}"
    opening = rng.random()
    if opening < 0.25:
        medium = _pick(rng, MEDIA)
        return f"{_article(medium)} {medium} of {text}"
    return f"there is {text}" if opening < 0.35 else text


def _statement(scene: Scene, rng: np.random.Generator, keep: float) -> str:
    """Speak in clauses: `the square is red and striped, it is large, the backdrop is blue`."""
    first = scene.things[0]
    *others, nouns = attributes(first)
    noun = _pick(rng, nouns)
    adjectives = _adjectives(first, rng, keep) or [_pick(rng, others[-1])]
    text = f"the {noun} is {' and '.join(adjectives)}"
    if scene.relation:
        other = _with_article(_noun_phrase(scene.things[1], rng, keep), rng)
        text += f", it is {_relation_phrase(_pick(rng, where_words(scene)))} {other}"
    elif rng.random() < keep:
        text += f", it is {_place_phrase(scene, rng)}"
    if rng.random() < keep:
        text += f", the {_pick(rng, GROUNDS)} is {_pick(rng, COLOUR_WORDS[scene.background])}"
    return text


def _tags(scene: Scene, rng: np.random.Generator, keep: float) -> str:
    """List tags as prompt engineers do, with or without commas: `striped red square, blue background, top`."""
    tags = []
    if scene.relation:
        nouns = [_noun_phrase(t, rng, keep) for t in scene.things]
        tags.append(f"{nouns[0]} {_pick(rng, where_words(scene))} {nouns[1]}")
    else:
        thing = scene.things[0]
        words = [*_adjectives(thing, rng, keep), _pick(rng, attributes(thing)[-1])]
        loose = rng.random() < 0.5  # half of the lists tear the object's words apart
        tags += words if loose else [" ".join(words)]
        tags += [_pick(rng, where_words(scene))] if rng.random() < keep else []
    if rng.random() < keep:
        tags.append(f"{_pick(rng, COLOUR_WORDS[scene.background])} {_pick(rng, GROUNDS)}")
    return str(rng.choice([", ", " "])).join(tags[i] for i in rng.permutation(len(tags)))


def _noun_phrase(thing: Thing | Pictured, rng: np.random.Generator, keep: float) -> str:
    return " ".join([*_adjectives(thing, rng, keep), _pick(rng, attributes(thing)[-1])])


def _adjectives(thing: Thing | Pictured, rng: np.random.Generator, keep: float) -> list[str]:
    words = [_pick(rng, group) for group in attributes(thing)[:-1] if rng.random() < keep]
    if rng.random() < 0.3:
        words = [words[i] for i in rng.permutation(len(words))]
    return words


def _place_phrase(scene: Scene, rng: np.random.Generator) -> str:
    word = _pick(rng, where_words(scene))
    side = " side" if scene.place in ("left", "right") and rng.random() < 0.3 else ""
    return f"{_pick(rng, ('at', 'in', 'on') if side else ('at', 'in'))} the {word}{side}"


def _relation_phrase(relation: str) -> str:
    return f"to the {relation}" if relation.endswith(" of") else relation


def _with_article(phrase: str, rng: np.random.Generator) -> str:
    return f"the {phrase}" if rng.random() < 0.15 else _a(phrase)


def _a(phrase: str) -> str:
    """The phrase with an article, if it takes one."""
    return phrase if phrase.split()[-1] in PLURALS else f"{_article(phrase)} {phrase}"


def _article(phrase: str) -> str:
    return "an" if phrase[0] in "aeiou" else "a"


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]
