"""The embedded world: scenes are deterministic, apart between splits, and described truly."""

import re

import numpy as np
import pytest

from ph2p.evaluation.wording import word_recall
from ph2p.world import scenes as world
from ph2p.world.captions import attribute_words, canonical_caption, random_caption
from ph2p.world.drawing import object_mask, render


def test_scenes_are_functions_of_their_key_and_splits_are_apart() -> None:
    assert world.scene("test", 5, seed=3) == world.scene("test", 5, seed=3)
    drawn = {split: {world.scene(split, i) for i in range(300)} for split in world.SPLITS}
    assert not drawn["train"] & drawn["test"] and not drawn["train"] & drawn["val"] and not drawn["val"] & drawn["test"]
    assert world.scene("test", 0, seed=1) != world.scene("test", 0, seed=2)


def test_some_pairs_of_shape_and_colour_occur_in_held_out_scenes_only() -> None:
    def pairs(split: str) -> set[tuple[str, str]]:
        return {(t.shape, t.colour) for i in range(4000) for t in world.scene(split, i).things}

    hidden = {(s, c) for s in world.SHAPES for c in world.COLOURS if world.held_out(s, c)}
    assert len(hidden) == 12
    assert not pairs("train") & hidden
    assert hidden <= pairs("test")


@pytest.mark.parametrize("shape", world.SHAPES)
def test_every_shape_is_drawn_in_its_colour_at_its_place(shape: str) -> None:
    thing = world.Thing(shape, "red", "large", "solid", (32.0, 32.0), 20.0, world.COLOURS["red"])
    picture = render(world.Scene((thing,), "white", (255, 255, 255), place="center")).astype(int)
    red = np.abs(picture - np.array(world.COLOURS["red"])).max(-1) < 10
    assert red.mean() > 0.03
    assert np.array_equal(red, object_mask(thing) > 0.97) or (red ^ (object_mask(thing) > 0.97)).mean() < 0.02
    border = np.concatenate([picture[:8].reshape(-1, 3), picture[-8:].reshape(-1, 3)])
    assert (border == 255).all()


def test_shapes_differ_from_each_other() -> None:
    masks = [object_mask(world.Thing(s, "red", "large", "solid", (32, 32), 20, (0, 0, 0))) for s in world.SHAPES]
    for i, one in enumerate(masks):
        assert all(np.abs(one - other).sum() > 60 for other in masks[i + 1 :])  # pixels


def test_captions_name_what_is_there_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    synonyms = [
        words
        for table in (world.SHAPES, world.COLOUR_WORDS, world.SIZES, world.FILLS, world.PLACES)
        for words in table.values()
    ]
    for index in range(300):
        scene = world.scene("val", index)
        truth = attribute_words(scene)
        canonical = canonical_caption(scene)
        assert word_recall(canonical, truth) == 1
        text = random_caption(scene, rng, keep=1.0)
        assert word_recall(text, truth) == 1, text
        sparse = set(re.findall(r"\w+", random_caption(scene, rng, keep=0.3)))
        lies = [w for group in synonyms for w in group if w in sparse and not any(w in named for named in truth)]
        assert set(lies) <= {"left", "right"} and (not lies or scene.relation), lies


def test_an_article_fits_its_noun() -> None:
    rng = np.random.default_rng(1)
    texts = [random_caption(world.scene("val", i), rng) for i in range(500)]
    assert not [text for text in texts if re.search(r"\ba [aeiou]|\ban [^aeiou]", text)]
