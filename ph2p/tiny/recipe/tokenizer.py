"""The tokenizer: CLIP's byte-pair encoding, learnt on the world's captions."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

from ph2p.world.captions import canonical_caption, random_caption
from ph2p.world.scenes import Scene

CONTEXT_LENGTH = 32


def train_tokenizer(scenes: list[Scene], seed: int) -> tuple[CLIPTokenizer, list[str]]:
    """Learn CLIP's byte-pair encoding on captions until every word of the world is one token.

    Only the merges are taken from the trainer: it numbers the single bytes differently in every run, so the
    vocabulary is laid out here in CLIP's own order (bytes, bytes that end a word, merges, specials).
    """
    rng = np.random.default_rng([seed, 99])
    counts = Counter()
    for scene in scenes[:4000]:
        captions = [canonical_caption(scene), *(random_caption(scene, rng) for _ in range(4))]
        counts.update(word for text in captions for word in text.replace(",", " , ").split())
    words = sorted(word for word in counts if word.isalpha())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator((" ".join([word] * counts[word]) for word in words), trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [a + "</w>" for a in alphabet] + ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT_LENGTH), words


def tokenize(tokenizer: CLIPTokenizer, texts: list[str], device: torch.device | str = "cpu") -> Tensor:
    """Return token ids (B, 32), padded as the diffusion pipeline pads them."""
    encoded = tokenizer(texts, padding="max_length", max_length=CONTEXT_LENGTH, truncation=True, return_tensors="pt")
    return encoded.input_ids.to(device)


def load_tokenizer(weights: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(weights / "tokenizer")
