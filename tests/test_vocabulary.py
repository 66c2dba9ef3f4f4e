import copy

import pytest
import torch
from pipelines import WORDS, save_tokenizer

from ph2p.errors import UserError
from ph2p.models.tokens import read_words
from ph2p.models.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def table(tokenizer):
    return torch.randn(len(tokenizer) + 3, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vocabulary(tokenizer, table):
    return Vocabulary(tokenizer, table)


def words_of(vocabulary):
    return {vocabulary.decode([i]) for i in vocabulary.allowed_ids.tolist()}


def test_default_mask_keeps_whole_words_only(vocabulary):
    assert words_of(vocabulary) == set(WORDS) - {"a"}  # a single letter is a byte piece
    assert vocabulary.allowed.sum() == len(vocabulary.allowed_ids) == len(WORDS) - 1


def test_lists_restrict_and_block(tokenizer, table):
    listed = Vocabulary(tokenizer, table, allowlist=["A", "red", "Dog", "unheard"], blocklist=["DOG"])
    assert words_of(listed) == {"a", "red"}
    with pytest.raises(UserError, match="no token is left"):
        Vocabulary(tokenizer, table, blocklist=WORDS)
    with pytest.raises(UserError, match="same model"):
        Vocabulary(tokenizer, table[:-4])


@pytest.mark.parametrize("scale", [0.3, 1.0, 30.0])
def test_nearest_equals_brute_force(vocabulary, table, scale):
    prompt = scale * torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))
    distances = torch.cdist(prompt.double(), table.double())  # (3, 5, V)
    distances[..., ~vocabulary.allowed] = torch.inf
    nearest = vocabulary.nearest(prompt)
    assert torch.equal(nearest, distances.argmin(-1))
    assert torch.equal(vocabulary.nearest(prompt[1]), nearest[1])
    assert torch.equal(vocabulary.nearest(vocabulary.embed(nearest)), nearest)


def test_of_equal_embeddings_the_lowest_id_stays(tokenizer, table, vocabulary):
    twins = table.clone()
    first, *others = vocabulary.allowed_ids[[1, 4, 7, 10]].tolist()
    twins[others] = table[first]
    blocked = first + 1  # a twin that is not allowed costs nobody a place
    assert not vocabulary.allowed[blocked]
    twins[blocked] = table[first]
    thinned = Vocabulary(tokenizer, twins)
    assert set(thinned.allowed_ids.tolist()) == set(vocabulary.allowed_ids.tolist()) - set(others)
    prompt = table[first] + 0.01 * torch.randn(200, 16)
    assert thinned.nearest(prompt).unique().tolist() == [first]
    assert vocabulary.allowed[vocabulary.nearest(torch.full((2, 16), torch.nan))].all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tables_are_compared_in_float32(tokenizer, table, dtype):
    half = (100 + table).to(dtype)  # far from zero, where half precision keeps few digits of a distance
    prompt = 100 + torch.randn(64, 16, generator=torch.Generator().manual_seed(4))
    vocabulary = Vocabulary(tokenizer, half)
    distances = torch.cdist(prompt.double(), half.double())
    distances[:, ~vocabulary.allowed] = torch.inf
    assert torch.equal(vocabulary.nearest(prompt), distances.argmin(-1))
    assert vocabulary.embed(vocabulary.allowed_ids).dtype == torch.float32


def test_text_and_tokens_agree(vocabulary):
    ids = vocabulary.encode("Red  square\nabove a café")
    assert vocabulary.decode(torch.tensor(ids)) == "red square above a café"
    assert vocabulary.round_trips(ids)
    copied = copy.deepcopy(vocabulary)  # the tokenizer's own decoding breaks here
    assert copied.decode(ids) == "red square above a café"
    for text, message in [(" \n", "empty"), ("red <|endoftext|>", "lacks")]:
        with pytest.raises(UserError, match=message):
            vocabulary.encode(text)


def test_repair_reads_the_printed_text(vocabulary):
    pieces = vocabulary.tokenizer.convert_tokens_to_ids
    red, dogs = pieces("red</w>"), pieces("dogs</w>")
    assert vocabulary.repair([red, dogs]) == [red, dogs]
    split = [red, pieces("dog"), pieces("s</w>")]  # prints "red dogs": two tokens, not three
    assert not vocabulary.round_trips(split)
    assert vocabulary.repair(split) is None
    unfinished = [red, pieces("dog")]  # prints "red dog", whose last token is "dog</w>"
    assert not vocabulary.round_trips(unfinished)
    assert vocabulary.repair(unfinished) == [red, pieces("dog</w>")]
    assert vocabulary.repair([red, pieces("a</w>")]) is None  # tokenises back, but is not allowed


def test_random_draws_allowed_tokens_and_repeats(vocabulary):
    draw = [vocabulary.random(50, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*draw)
    assert vocabulary.allowed[draw[0]].all()
    assert len(draw[0].unique()) > 5


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_read_words(tmp_path, encoding):
    path = tmp_path / "words.txt"
    text = "red # a colour\r\n\r\n  café  # with accent\r\n# nothing\r\nblue\t1203\r\ngreen 0.5\r\n"
    path.write_bytes(text.encode(encoding))
    assert read_words(path) == ["red", "café", "blue", "green"]  # without the counts of a frequency list
    path.write_bytes(b"caf\xe9")
    for bad in (path, tmp_path, tmp_path / "missing.txt"):
        with pytest.raises(UserError, match="one word a line"):
            read_words(bad)


@pytest.mark.parametrize(
    ("word", "named"), [("new york", "'new york'"), ("re\u200bd", r"'re\u200bd'"), ("\ufeffred", r"'\ufeffred'")]
)
def test_words_that_can_never_match_are_named(tmp_path, word, named):
    path = tmp_path / "words.txt"
    path.write_text(f"blue\n{word}\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_words(path)
    assert str(caught.value).startswith(f"{path}: {named} can never be one word")
