"""The embedded world: scenes are deterministic, apart between splits, described truly; some pairs are kept back."""

import re

import numpy as np
import pytest

from ph2p.evaluation.metrics import word_recall
from ph2p.world import scenes as world
from ph2p.world.captions import attribute_words, canonical_caption, random_caption
from ph2p.world.drawing import object_mask, render
from ph2p.world.scenes import COLOURS, SPLITS, Pictured, Scene, Thing
from ph2p.world.sprites import HELD_OUT_STYLE, STYLES, THINGS, sprite


def noun(thing: Thing | Pictured) -> str:
    return thing.shape if isinstance(thing, Thing) else thing.noun


def test_scenes_are_functions_of_their_key_and_splits_are_apart() -> None:
    assert world.scene("test", 5, seed=3) == world.scene("test", 5, seed=3)
    assert world.scene("test", 0, seed=1) != world.scene("test", 0, seed=2)
    drawn = {split: {world.scene(split, i) for i in range(300)} for split in SPLITS}
    assert not drawn["train"] & drawn["test"] and not drawn["train"] & drawn["val"] and not drawn["val"] & drawn["test"]


def test_held_out_scenes_show_things_in_a_hand_that_training_never_sees() -> None:
    hands = {
        split: {t.style for i in range(500) for t in world.scene(split, i).things if isinstance(t, Pictured)}
        for split in SPLITS
    }
    assert hands == {"train": set(STYLES), "val": {HELD_OUT_STYLE}, "test": {HELD_OUT_STYLE}}


def test_some_pairs_never_occur_in_training() -> None:
    scenes = [world.scene("train", i) for i in range(4000)]
    grounds = {(noun(t), scene.background) for scene in scenes for t in scene.things}
    hidden = {(n, c) for n in world.NOUNS for c in COLOURS if world.held_out(n, c)}
    assert len(hidden) == 65 and not grounds & hidden
    pairs = [tuple(noun(t) for t in scene.things) for scene in scenes if scene.relation]
    assert len(pairs) > 1000 and not [pair for pair in pairs if world.held_out_pair(*pair)]
    tested = [world.scene("test", i) for i in range(4000)]
    assert any(world.held_out(noun(t), scene.background) for scene in tested for t in scene.things)
    assert any(scene.relation and world.held_out_pair(*map(noun, scene.things)) for scene in tested)


def test_every_noun_is_shown_and_the_number_of_objects_is_as_asked() -> None:
    seen = {noun(t) for i in range(4000) for t in world.scene("train", i).things}
    assert seen == set(world.NOUNS)
    assert {len(world.scene("val", i, objects=2).things) for i in range(50)} == {2}
    assert {len(world.scene("val", i, objects=1).things) for i in range(50)} == {1}


@pytest.mark.parametrize("style", [*STYLES, HELD_OUT_STYLE])
def test_every_hand_draws_every_thing(style: str) -> None:
    drawn = [np.asarray(sprite(style, name)) for name in THINGS]
    assert all(picture.shape == (64, 64, 4) and (picture[..., 3] > 127).mean() > 0.06 for picture in drawn)
    assert len({picture.tobytes() for picture in drawn}) == len(THINGS)


def test_a_thing_is_drawn_within_its_mask_and_turned_and_mirrored() -> None:
    def picture(**changes) -> np.ndarray:
        return render(Scene((Pictured("guitar", "noto", "large", (32.0, 32.0), 21.0, **changes),), "white", (255,) * 3))

    plain, thing = picture(), Pictured("guitar", "noto", "large", (32.0, 32.0), 21.0)
    mask = object_mask(thing)
    assert mask.shape == (64, 64) and 0.05 < mask.mean() < 0.45
    assert (plain[mask == 0] == 255).all() and (plain[mask > 0.95] != 255).any(-1).mean() > 0.9
    assert not np.array_equal(picture(angle=8.0), plain)
    assert np.abs(picture(mirrored=True)[:, ::-1].astype(int) - plain).mean() < 3


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


def test_objects_stand_out_from_their_background() -> None:
    for index in range(300):
        scene = world.scene("train", index)
        picture = render(scene).astype(int)
        for thing in scene.things:
            inside = np.abs(picture - np.array(scene.ground)).max(-1)[object_mask(thing) > 0.9]
            assert (inside > 25).mean() > 0.4, canonical_caption(scene)


def test_captions_name_what_is_there_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    for index in range(300):
        scene = world.scene("val", index)
        truth = attribute_words(scene)
        assert word_recall(canonical_caption(scene), truth) == 1
        assert word_recall(random_caption(scene, rng, keep=1.0), truth) == 1
        sparse = set(re.findall(r"\w+", random_caption(scene, rng, keep=0.3)))
        named = {word for group in truth for word in group}
        lies = [word for words in world.NOUNS.values() for word in words if word in sparse - named]
        assert not lies, (canonical_caption(scene), lies)


def test_no_word_names_two_nouns() -> None:
    words = [word for names in world.NOUNS.values() for word in names]
    assert len(words) == len(set(words))
    assert all(word.isalpha() and word == word.lower() for word in words)


def test_plural_nouns_take_no_indefinite_article() -> None:
    rng = np.random.default_rng(2)
    thing = Pictured("scissors", "noto", "large", (32.0, 32.0), 21.0)
    scene = Scene((thing,), "white", (255,) * 3, place="top")
    assert canonical_caption(scene) == "large scissors at the top on a white background"
    texts = [random_caption(scene, rng) for _ in range(100)]
    assert not [text for text in texts if re.search(r"\b(a|an) (\w+ )?scissors", text)]


def test_an_article_fits_its_noun() -> None:
    rng = np.random.default_rng(1)
    texts = [random_caption(world.scene("val", i), rng) for i in range(500)]
    assert not [text for text in texts if re.search(r"\ba [aeiou]|\ban [^aeiou]", text)]
