"""Which words may stand in a prompt: the rule on the word alone, and the rule with the lists in a vocabulary."""

import pytest
import torch
from pipelines import WORDS, save_tokenizer

from ph2p.config.compose import load_config
from ph2p.errors import UserError
from ph2p.models.tokens import TokenFilter, read_words
from ph2p.models.vocabulary import Vocabulary
from ph2p.run.build import load_inverter


@pytest.mark.parametrize(
    ("rule", "kept", "left_out"),
    [
        ({}, "red café Straße Éclair naïve", "a 3d t-shirt don't 你好 привет кot ☺ 12 x² ª _ red\u200bred \ufffd"),
        ({"scripts": ("cyrillic", "greek")}, "привет λόγος", "red кot и"),
        ({"scripts": ("han", "hiragana"), "min_length": 1}, "猫 ねこ 食べる", "cat ネコ ー"),
        ({"scripts": ("devanagari",)}, "हिन्दी", "hindi"),  # with vowel signs, which are marks
        ({"scripts": (), "min_length": 1}, "a λ кot 猫", "1 - é́1"),
        ({"min_length": 4, "max_length": 5}, "blue green", "red circle"),
        ({"frequent": ["Red", "dog"]}, "red RED dog", "blue"),
        ({"protected": ["t-shirt"]}, "red", "t-shirt"),  # its own question, `protects`
    ],
)
def test_the_rule(rule, kept, left_out):
    passes = TokenFilter(**rule)
    assert [word for word in kept.split() if not passes(word)] == []
    assert [word for word in left_out.split() if passes(word)] == []


def test_wrong_rules_give_one_line():
    for rule, message in [
        ({"scripts": ("latin", "klingon")}, "Unicode has no 'klingon'"),
        ({"min_length": 0}, "min_length=0"),
        ({"min_length": 9, "max_length": 8}, "min_length=9: .*max_length=8"),
    ]:
        with pytest.raises(UserError, match=message):
            TokenFilter(**rule)


@pytest.fixture(scope="module")
def allowed(tmp_path_factory):
    """The allowed words of the tests' own vocabulary, by the arguments of `Vocabulary`."""
    tokenizer = save_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    table = torch.randn(len(tokenizer), 4, generator=torch.Generator().manual_seed(0))

    def words(**arguments):
        vocabulary = Vocabulary(tokenizer, table, **arguments)
        return {vocabulary.decode([i]) for i in vocabulary.allowed_ids.tolist()}

    return words


def test_protected_words_beat_the_blocklist_which_beats_the_rest(allowed):
    everything = set(WORDS) - {"a"}
    assert allowed(blocklist=["red", "Dog"]) == everything - {"red", "dog"}
    assert allowed(blocklist=["red"], tokens=TokenFilter(protected=["Red", "A"])) == everything | {"a"}
    assert allowed(allowlist=["dog", "blue"], blocklist=["blue"], tokens=TokenFilter(protected=["a"])) == {"dog", "a"}
    assert allowed(tokens=TokenFilter(frequent=["café", "nothing"], protected=["dogs"])) == {"café", "dogs"}
    # What is no token of its own is no word of this vocabulary, however much it is wanted.
    assert "purple" not in allowed(tokens=TokenFilter(protected=["purple"]))
    with pytest.raises(UserError, match="no token is left"):
        allowed(tokens=TokenFilter(scripts=("greek",)))


def test_the_configuration_reaches_the_vocabulary(model_overrides, tmp_path):
    def words(*overrides):
        vocabulary = load_inverter(
            load_config([*model_overrides, "method.prompt_length=4", *overrides])
        ).generator.vocabulary
        return {vocabulary.decode([i]) for i in vocabulary.allowed_ids.tolist()}

    everything = set(WORDS) - {"a"}
    (tmp_path / "block.txt").write_text("red\n")
    (tmp_path / "frequent.txt").write_text("red 12\nblue 7\na 3\n")
    tokens = f"generator.tokens={{frequent: '{tmp_path}/frequent.txt', protected: [dog], min_length: 1}}"
    assert words() == everything
    assert words(f"generator.blocklist={tmp_path}/block.txt") == everything - {"red"}
    assert words(tokens) == {"a", "red", "blue", "dog"}
    for override, message in [
        ("generator.tokens.scripts=[elvish]", "generator.tokens.scripts: Unicode has no 'elvish'"),
        (f"generator.tokens.frequent={tmp_path}/missing.txt", "missing.txt: "),
        ("generator.tokens.frequent=/dev/null", "generator.tokens.frequent=/dev/null: names no word"),
    ]:
        with pytest.raises(UserError, match=message):
            words(override)


def test_the_shipped_blocklist_is_the_default_and_null_switches_it_off():
    shipped = load_config([]).generator.blocklist
    words = read_words(shipped)
    assert len(words) > 200 and len(set(words)) == len(words) and words == [word.lower() for word in words]
    assert load_config(["generator=sd15"]).generator.blocklist == shipped
    assert load_config(["generator.blocklist=null"]).generator.blocklist is None
    # Words of arts and of kinds of people are not insults.
    assert not {"jewish", "muslim", "lesbian", "gay", "black", "breast", "body", "kiss", "bikini"} & set(words)
