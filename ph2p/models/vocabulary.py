"""The words a prompt may be made of: tokens, their embeddings, and the way back to text."""

from collections.abc import Iterable, Sequence
from copy import copy
from typing import Self

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ph2p.errors import UserError
from ph2p.models.tokens import TokenFilter, folded

SHORTLIST = 8  # rows that exact distances choose from: more than tie within the rounding of the matmul


class Vocabulary(nn.Module):
    """A tokenizer, its token embeddings, and the mask of tokens that a found prompt may use.

    A token is allowed if its word passes the filter and the lists, and if the prompt can be read back from its
    text: the word, written at the beginning of a text and after another word, is this token and nothing else.
    So special tokens, bytes and pieces of words never are (CLIP's without `</w>`, T5's without `▁`), nor
    spellings that the tokenizer normalises. Of allowed tokens with one and the same embedding, which no
    optimisation can tell apart, the first is kept.

    Args:
        tokenizer: any tokenizer of transformers: byte pairs (CLIP), sentencepiece (T5) or byte-level (GPT-2, Llama).
        embeddings: (V, D) the text encoder's input embeddings; rows beyond the tokenizer's tokens are unused.
        blocklist: words that are left out, unless the filter protects them.
        allowlist: if not empty, only these words are allowed, single letters and numbers too if listed; words
            that are not one token of this vocabulary are passed over.
        tokens: the rule for words where there is no allowlist.
        lead: the end of what the pipeline writes before every prompt, such as "User Prompt:"; byte-level
            tokenizers need it, because a word after a space is another token than the first word of a text.

    Raises:
        UserError: no token is left, or the table has fewer rows than the tokenizer has tokens.
    """

    embeddings: Tensor
    allowed: Tensor
    allowed_ids: Tensor
    square_norms: Tensor
    required_ids: Tensor
    distance: str = "euclid"  # or cosine: by which `nearest` projects

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        embeddings: Tensor,
        *,
        blocklist: Iterable[str] = (),
        allowlist: Iterable[str] = (),
        tokens: TokenFilter = TokenFilter(),  # noqa: B008, it is frozen
        lead: str = "",
    ) -> None:
        super().__init__()
        if len(tokenizer) > len(embeddings):
            raise UserError(
                f"tokenizer: it has {len(tokenizer)} tokens but the text encoder embeds {len(embeddings)}; "
                "take both from the same model"
            )
        self.tokenizer, self.lead = tokenizer, lead
        table = embeddings.detach().float()  # (V, D); half precision would not tell near tokens apart
        listed = folded(allowlist)
        ids = self._readable(self._wanted(folded(blocklist), listed, tokens))
        if not ids:
            names = ", ".join(sorted(listed)[:3])
            reason = f"none of the allowlist's words ({names}, ...) is one token; " if listed else ""
            raise UserError(f"vocabulary: no token is left; {reason}widen generator.tokens or give other word lists")
        allowed_ids = _first_of_equals(table[ids], ids).to(table.device)
        self.register_buffer("embeddings", table, persistent=False)
        self.register_buffer("square_norms", table.square().sum(-1), persistent=False)  # (V,)
        allowed = torch.zeros(len(table), dtype=torch.bool, device=table.device)
        self.register_buffer("allowed", allowed.index_fill(0, allowed_ids, True), persistent=False)  # (V,)
        self.register_buffer("allowed_ids", allowed_ids, persistent=False)  # (A,)
        self.register_buffer("required_ids", allowed_ids[:0], persistent=False)  # (R,), see `choosing`

    def _wanted(self, blocked: frozenset[str], listed: frozenset[str], tokens: TokenFilter) -> dict[int, str]:
        """The words that filter and lists let through, by token id in ascending order."""
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        words = {i: self.decode([i]) for i in range(len(self.tokenizer)) if i not in special}

        def want(word: str) -> bool:
            key = word.casefold()
            return tokens.protects(word) or (key not in blocked and (key in listed if listed else tokens(word)))

        return {i: word for i, word in words.items() if want(word)}

    def _readable(self, words: dict[int, str]) -> list[int]:
        """The ids whose word is read as just this token, first in a text and after another word."""
        texts = [self._led(f"{word} {word}") for word in words.values()]
        # One call for all words: the tokenizer works on them in parallel.
        found = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False).input_ids if texts else []
        start = self._lead_length()
        return [i for i, again in zip(words, found, strict=True) if again[start:] == [i, i]]

    def deviation(self) -> Tensor:
        """The standard deviation of the allowed tokens' embeddings, of each of their numbers (D,)."""
        return self.embeddings[self.allowed_ids].std(0, correction=0)

    def projecting(self, distance: str) -> Self:
        """The same vocabulary, its tensors shared, whose `nearest` goes by "euclid" or "cosine"."""
        other = copy(self)
        other.distance = distance
        return other

    def choosing(self, require: Sequence[str], forbid: Iterable[str]) -> Self:
        """The same vocabulary without the words `forbid`, whose prompts all hold the words `require`, in any case.

        A forbidden word that is no token of this vocabulary cannot occur anyway. Raises UserError where no token is
        left, and for a required word that is not one allowed token.
        """
        if not require and not forbid:
            return self
        other, unwanted = copy(self), folded(forbid)
        other._buffers = dict(self._buffers)  # its own, or what follows would change ours too
        kept = [i for i in self.allowed_ids.tolist() if self.decode([i]).casefold() not in unwanted]
        if not kept:
            raise UserError("method.forbid: no token is left; forbid fewer words")
        other.allowed_ids = self.allowed_ids.new_tensor(kept)
        other.allowed = torch.zeros_like(self.allowed).index_fill(0, other.allowed_ids, True)
        other.required_ids = self.allowed_ids.new_tensor(list(dict.fromkeys(map(self._only_token, require))))
        return other

    def _only_token(self, word: str) -> int:
        """The allowed token that a required word is; raises UserError where it is none."""
        try:
            ids = self.encode(word)
        except UserError as error:
            raise UserError(f"method.require: {word!r} is not in this model's vocabulary; leave it out") from error
        if len(ids) > 1:
            raise UserError(
                f"method.require: {word!r} is {len(ids)} tokens of this model; only words of one token can be required"
            )
        if not self.allowed[ids[0]]:
            raise UserError(
                f"method.require: {word!r} is left out by the rules for words; give generator.tokens.protected=[{word}]"
            )
        return ids[0]

    @torch.no_grad()
    def nearest(self, prompt: Tensor) -> Tensor:
        """Allowed tokens whose embeddings are closest to the prompt's; of equally close ones the lowest id.

        euclid: token = argmin_v ||p - E_v||^2, by the matmul of ||E_v||^2 - 2 p.E_v = ||p - E_v||^2 - ||p||^2.
        cosine: token = argmax_v p.E_v / ||E_v||, as PEZ's code projects; far from the vocabulary, where Euclid prefers
        tokens of a large norm, it does not. Where words are required it is the nearest of the prompts that hold them:
        see `holding`. Exact distances settle a short list, so that an answer depends neither on
        the rounding of the matmul nor on the other rows of the batch.

        Args:
            prompt: (..., M, D).

        Returns:
            (..., M) long.
        """
        flat = prompt.float().flatten(0, -2)  # (K, D)
        products = self.embeddings @ flat.T  # (V, K), in the table's own order: twice as fast as (K, V)
        if self.distance == "cosine":
            scores = (-products / self._norms()[:, None])[self.allowed_ids].T  # (K, A)
        else:
            scores = (self.square_norms[:, None] - 2 * products)[self.allowed_ids].T
        count = min(SHORTLIST, scores.shape[-1])
        columns = scores.topk(count, largest=False).indices.sort().values  # ascending ids: argmin takes the first
        shortlist = self.allowed_ids[columns]  # (K, count)
        best = self._distances(flat, shortlist).argmin(-1, keepdim=True)
        return self.holding(shortlist.gather(-1, best).view(prompt.shape[:-1]), prompt)

    @torch.no_grad()
    def neighbours(self, token_ids: Tensor, count: int) -> Tensor:
        """Of each of (M,) tokens the `count` other allowed tokens whose embeddings are nearest, nearest first: (M, W),
        W at most `count`."""
        distances = torch.cdist(self.embed(token_ids), self.embed(self.allowed_ids))  # (M, A)
        distances = distances.masked_fill(self.allowed_ids == token_ids[:, None], torch.inf)
        order = distances.argsort(dim=1, stable=True)
        return self.allowed_ids[order[:, : min(count, len(self.allowed_ids) - 1)]]

    @torch.no_grad()
    def holding(self, token_ids: Tensor, prompt: Tensor) -> Tensor:
        """`token_ids` (..., M) with the required words in R of the places, those where it takes them least far.

        Which word goes to which place of the prompt (..., M, D) is an assignment problem: the least sum of what the
        distances grow by (Kuhn, The Hungarian method, 1955). Of the nearest tokens it makes the nearest prompt that
        holds the words.
        """
        if not len(self.required_ids):
            return token_ids
        flat = prompt.float().flatten(0, -2)  # (K M, D)
        tried = torch.cat([token_ids.reshape(-1, 1), self.required_ids.expand(len(flat), -1)], 1)  # (K M, 1 + R)
        distances = self._distances(flat, tried).nan_to_num()
        growth = (distances[:, 1:] - distances[:, :1]).view(-1, token_ids.shape[-1], len(self.required_ids))
        rows = token_ids.reshape(-1, token_ids.shape[-1]).clone()  # (K, M)
        for row, costs in zip(rows, growth.cpu().numpy(), strict=True):
            places, words = (torch.from_numpy(some).to(rows.device) for some in linear_sum_assignment(costs))
            row[places] = self.required_ids[words]
        return rows.view(token_ids.shape)

    def holds(self, token_ids: Sequence[int] | Tensor) -> bool:
        """Whether (M,) ids are allowed ones, the required ones among them."""
        ids = _as_list(token_ids)
        return bool(self.allowed[ids].all()) and set(self.required_ids.tolist()) <= set(ids)

    def _distances(self, flat: Tensor, token_ids: Tensor) -> Tensor:
        """Distances (K, count) of vectors (K, D) to tokens (K, count), up to what is the same for all of a row."""
        rows = self.embed(token_ids)  # (K, count, D)
        if self.distance == "cosine":
            return -(flat[:, None] * (rows / self._norms()[token_ids][..., None])).sum(-1)
        return (flat[:, None] - rows).square().sum(-1)

    def _norms(self) -> Tensor:
        return self.square_norms.sqrt().clamp_min(torch.finfo(torch.float32).tiny)  # (V,)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Token embeddings (..., M, D) of (..., M) ids."""
        return F.embedding(token_ids, self.embeddings)

    def decode(self, token_ids: Sequence[int] | Tensor) -> str:
        """The text of (M,) ids, its words separated by single spaces."""
        text: str = self.tokenizer.decode(_as_list(token_ids), clean_up_tokenization_spaces=False)
        # CLIP's tokenizer loses its own handling of word ends when it is copied or pickled.
        return " ".join(text.replace("</w>", " ").split())

    def words(self, token_ids: Sequence[int] | Tensor) -> list[str]:
        """The text of each of (M,) tokens by itself."""
        return [self.decode([token_id]) for token_id in _as_list(token_ids)]

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, without begin and end markers.

        Raises:
            UserError: the text is empty, or holds special tokens or characters that the vocabulary lacks.
        """
        ids = self._tokenise(text)
        if not ids:
            raise UserError("prompt: the text is empty; give at least one word")
        if not set(ids).isdisjoint(self.tokenizer.all_special_ids):
            raise UserError(f"prompt: {text!r} holds characters that this vocabulary lacks; use plain words")
        return ids

    def _tokenise(self, text: str) -> list[int]:
        ids = self.tokenizer(self._led(text), add_special_tokens=False, verbose=False).input_ids
        return ids[self._lead_length() :]

    def _led(self, text: str) -> str:
        return " ".join([*self.lead.split(), *text.split()])

    def _lead_length(self) -> int:
        return len(self.tokenizer(self._led(""), add_special_tokens=False).input_ids) if self.lead else 0

    def single(self, words: Iterable[str]) -> tuple[str, ...]:
        """Those of some words that are one allowed token each."""
        read = ((word, self._tokenise(word)) for word in words)
        return tuple(word for word, ids in read if len(ids) == 1 and self.allowed[ids[0]])

    def round_trips(self, token_ids: Sequence[int] | Tensor) -> bool:
        """Whether the printed text of (M,) ids tokenises back to exactly these ids."""
        ids = _as_list(token_ids)
        return self._tokenise(self.decode(ids)) == ids

    def read_back(self, token_ids: Sequence[int] | Tensor) -> list[int] | None:
        """The ids (M,) if their printed text tokenises back to them, allowed or not; otherwise None."""
        return _as_list(token_ids) if self.round_trips(token_ids) else None

    def repair(self, token_ids: Sequence[int] | Tensor) -> list[int] | None:
        """What the printed text of (M,) ids really tokenises to, or None if that is no prompt of ours.

        Returns:
            As many ids, which `holds` takes and which round-trip; None if there is no such reading.
        """
        ids = _as_list(token_ids)
        again = self._tokenise(self.decode(ids))
        fits = len(again) == len(ids) and self.holds(again) and self.round_trips(again)
        return again if fits else None

    def random(self, count: int, generator: torch.Generator) -> Tensor:
        """Allowed ids (count,) drawn uniformly by a CPU generator: the same on every device."""
        drawn = torch.randint(len(self.allowed_ids), (count,), generator=generator)
        return self.allowed_ids[drawn.to(self.allowed_ids.device)]


def _first_of_equals(rows: Tensor, ids: list[int]) -> Tensor:
    """The ids (A,) whose row of `rows` (len(ids), D) has not occurred before."""
    seen: dict[bytes, int] = {}
    for i, row in zip(ids, rows.cpu().numpy(), strict=True):
        seen.setdefault(row.tobytes(), i)
    return torch.tensor(list(seen.values()))


def _as_list(token_ids: Sequence[int] | Tensor) -> list[int]:
    return token_ids.tolist() if isinstance(token_ids, Tensor) else list(token_ids)
