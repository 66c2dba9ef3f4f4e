"""What is kept of real vocabularies, and that it reads back: CLIP's byte pairs, T5's pieces, Llama's bytes."""

import gzip
import random
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, CLIPTokenizer

from ph2p.config.compose import load_config
from ph2p.models.tokens import TokenFilter, read_words
from ph2p.models.vocabulary import Vocabulary

PROMPTS, LENGTH = 500, 8


def data_of(package: str) -> Path:
    """The folder of an installed package, which is not imported: only its files are read."""
    found = find_spec(package)
    if found is None:
        pytest.skip(f"{package} is missing: pip install --no-deps -r tests/vocabularies.txt")
    return Path(found.submodule_search_locations[0])


def clip_tokenizer(merges_file: Path) -> CLIPTokenizer:
    """OpenAI's tokenizer from its merges: bytes, bytes that end a word, merges in order, the two markers."""
    lines = gzip.decompress(merges_file.read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49_152 - 256 - 2 + 1]]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (256 + place for place in range(256 - len(printable)))
    characters = [chr(code) for code in [*printable, *others]]  # in the order of OpenAI's table, not by byte
    tokens = [*characters, *(c + "</w>" for c in characters), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, model_max_length=77)


def t5_tokenizer():
    return AutoTokenizer.from_pretrained(data_of("diffsynth") / "tokenizer_configs" / "flux" / "tokenizer_2")


def llama_tokenizer():
    return AutoTokenizer.from_pretrained(data_of("diffsynth") / "tokenizer_configs" / "hunyuan_video" / "tokenizer_2")


REAL = {  # tokenizer, what stands before the prompt, tokens, kept
    "clip": (lambda: clip_tokenizer(data_of("open_clip") / "bpe_simple_vocab_16e6.txt.gz"), "", 49_408, 32_808),
    "t5": (t5_tokenizer, "", 32_100, 21_496),
    "llama": (llama_tokenizer, "User Prompt:", 128_259, 46_443),
}


@pytest.fixture(scope="module", params=list(REAL))
def real(request):
    """A vocabulary as a run has it by default, its name, and the figures in docs/vocabulary.md."""
    make, lead, size, kept = REAL[request.param]
    tokenizer = make()
    assert len(tokenizer) == size
    blocklist = read_words(load_config([]).generator.blocklist)
    table = torch.randn(size, 4, generator=torch.Generator().manual_seed(0))
    return request.param, Vocabulary(tokenizer, table, blocklist=blocklist, lead=lead), kept


def test_all_that_is_kept_reads_back(real):
    _, vocabulary, kept = real
    ids = vocabulary.allowed_ids.tolist()
    assert len(ids) == kept
    draw = random.Random(0)
    assert all(vocabulary.encode(vocabulary.decode([i])) == [i] for i in draw.sample(ids, PROMPTS))
    prompts = [draw.choices(ids, k=LENGTH) for _ in range(PROMPTS)]
    assert all(vocabulary.encode(vocabulary.decode(prompt)) == prompt for prompt in prompts)
    assert all(vocabulary.repair(prompt) == prompt for prompt in prompts[:20])


def test_what_is_kept_and_what_is_not(real):
    name, vocabulary, _ = real
    tokenizer, allowed = vocabulary.tokenizer, vocabulary.allowed
    pieces = {"clip": "{}</w>", "t5": "▁{}", "llama": "Ġ{}"}[name]
    for word in ("dog", "red", "beautiful", "photo", "castle", "watercolor"):
        token = tokenizer.convert_tokens_to_ids(pieces.format(word))
        if token not in (None, tokenizer.unk_token_id):
            assert allowed[token], word
    never = {"clip": ["dog", "!", "1</w>", "a</w>", "sexy</w>", "ðŁĺĤ</w>"], "t5": ["dog", "▁", "▁2", "<extra_id_0>"]}
    never["llama"] = ["dog", "Ġa", "Ġ2", "Ġporn", "!"]
    ids = tokenizer.convert_tokens_to_ids(never[name])
    assert len(set(ids)) == len(ids) and not allowed[ids].any()
    assert not allowed[tokenizer.all_special_ids].any()


@pytest.mark.parametrize("real", ["clip"], indirect=True)
def test_a_word_split_in_pieces_is_repaired_or_refused(real):
    _, vocabulary, _ = real
    ids = vocabulary.tokenizer.convert_tokens_to_ids
    loose = [ids("red</w>"), ids("dog")]  # printed as "red dog"
    assert vocabulary.repair(loose) == [ids("red</w>"), ids("dog</w>")]
    assert vocabulary.repair([ids("wizar"), ids("d</w>")]) is None  # printed as one word


@pytest.mark.parametrize("real", ["clip"], indirect=True)
def test_other_scripts_of_clip(real):
    _, vocabulary, _ = real
    table = vocabulary.embeddings
    others = Vocabulary(vocabulary.tokenizer, table, tokens=TokenFilter(scripts=("cyrillic", "greek", "arabic")))
    words = [others.decode([i]) for i in others.allowed_ids.tolist()]
    assert "фото" in words and not any(word.isascii() for word in words)
