"""The words a prompt may be made of: tokens, their embeddings, and the way back to text."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ph2p.errors import UserError

SHORTLIST = 8  # rows that exact distances choose from: more than tie within the rounding of the matmul


class Vocabulary(nn.Module):
    """A tokenizer, its token embeddings, and the mask of tokens that a found prompt may use.

    By default the allowed tokens are whole words: at least two characters, letters only, not special, and
    tokenised back to themselves when written out (which leaves out CLIP's pieces without `</w>`).

    Args:
        tokenizer: any tokenizer of transformers.
        embeddings: (V, D) the text encoder's input embeddings; rows beyond the tokenizer's tokens are unused.
        blocklist: words that are left out, whatever else is said.
        allowlist: if not empty, only these words are allowed, single letters and numbers too if listed; words
            that are not one token of this vocabulary are passed over.

    Raises:
        UserError: no token is left, or the table has fewer rows than the tokenizer has tokens.
    """

    embeddings: Tensor
    allowed: Tensor
    allowed_ids: Tensor
    square_norms: Tensor

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        embeddings: Tensor,
        *,
        blocklist: Iterable[str] = (),
        allowlist: Iterable[str] = (),
    ) -> None:
        super().__init__()
        if len(tokenizer) > len(embeddings):
            raise UserError(
                f"tokenizer: it has {len(tokenizer)} tokens but the text encoder embeds {len(embeddings)}; "
                "take both from the same model"
            )
        self.tokenizer = tokenizer
        table = embeddings.detach().float()  # (V, D)
        allowed = torch.zeros(len(table), dtype=torch.bool)
        allowed[: len(tokenizer)] = self._allowed_tokens(_folded(blocklist), _folded(allowlist))
        if not allowed.any():
            raise UserError("vocabulary: no token is left; shorten the blocklist or name more words in the allowlist")
        self.register_buffer("embeddings", table, persistent=False)
        self.register_buffer("square_norms", table.square().sum(-1), persistent=False)  # (V,)
        self.register_buffer("allowed", allowed.to(table.device), persistent=False)  # (V,)
        self.register_buffer("allowed_ids", self.allowed.nonzero().squeeze(-1), persistent=False)  # (A,)

    def _allowed_tokens(self, blocked: set[str], wanted: set[str]) -> Tensor:
        ids = range(len(self.tokenizer))
        special = set(self.tokenizer.all_special_ids)
        words = [self.decode([i]) for i in ids]
        # One call for all words: the tokenizer works on them in parallel.
        back = self.tokenizer(words, add_special_tokens=False, return_attention_mask=False).input_ids
        usable = [i not in special and again == [i] for i, again in zip(ids, back, strict=True)]
        if wanted:
            listed = [word.casefold() in wanted for word in words]
        else:
            listed = [len(word) > 1 and word.isalpha() for word in words]
        unblocked = [word.casefold() not in blocked for word in words]
        return torch.tensor([all(tests) for tests in zip(usable, listed, unblocked, strict=True)])

    @torch.no_grad()
    def nearest(self, prompt: Tensor) -> Tensor:
        """Allowed tokens whose embeddings are closest to the prompt's; of equally close ones the lowest id.

        token = argmin_v ||p - E_v||^2, by the matmul of ||E_v||^2 - 2 p.E_v = ||p - E_v||^2 - ||p||^2. Exact
        distances settle a short list, so that an answer depends neither on the rounding of the matmul nor on
        the other rows of the batch.

        Args:
            prompt: (..., M, D).

        Returns:
            (..., M) long.
        """
        flat = prompt.float().flatten(0, -2)  # (K, D)
        scores = (self.square_norms - 2 * flat @ self.embeddings.T)[:, self.allowed_ids]  # (K, A)
        count = min(SHORTLIST, scores.shape[-1])
        columns = scores.topk(count, largest=False).indices.sort().values  # ascending ids: argmin takes the first
        shortlist = self.allowed_ids[columns]  # (K, count)
        distances = (flat[:, None] - self.embed(shortlist)).square().sum(-1)  # (K, count)
        best = distances.argmin(-1, keepdim=True)
        return shortlist.gather(-1, best).view(prompt.shape[:-1])

    def embed(self, token_ids: Tensor) -> Tensor:
        """Token embeddings (..., M, D) of (..., M) ids."""
        return F.embedding(token_ids, self.embeddings)

    def decode(self, token_ids: Sequence[int] | Tensor) -> str:
        """The text of (M,) ids, its words separated by single spaces."""
        text = self.tokenizer.decode(_as_list(token_ids), clean_up_tokenization_spaces=False)
        # CLIP's tokenizer loses its own handling of word ends when it is copied or pickled.
        return " ".join(text.replace("</w>", " ").split())

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
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def round_trips(self, token_ids: Sequence[int] | Tensor) -> bool:
        """Whether the printed text of (M,) ids tokenises back to exactly these ids."""
        ids = _as_list(token_ids)
        return self._tokenise(self.decode(ids)) == ids

    def repair(self, token_ids: Sequence[int] | Tensor) -> list[int] | None:
        """What the printed text of (M,) ids really tokenises to, or None if that is no prompt of ours.

        Returns:
            As many ids, all allowed, which round-trip; None if there is no such reading.
        """
        ids = _as_list(token_ids)
        again = self._tokenise(self.decode(ids))
        fits = len(again) == len(ids) and bool(self.allowed[again].all()) and self.round_trips(again)
        return again if fits else None

    def random(self, count: int, generator: torch.Generator) -> Tensor:
        """Allowed ids (count,) drawn uniformly by a CPU generator: the same on every device."""
        drawn = torch.randint(len(self.allowed_ids), (count,), generator=generator)
        return self.allowed_ids[drawn.to(self.allowed_ids.device)]


def read_words(path: str | Path) -> list[str]:
    """The words of a blocklist or allowlist file: one a line, `#` starts a comment.

    Raises:
        UserError: the file is missing, unreadable or not UTF-8 text.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a text file with one word a line") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8 with one word a line") from error
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def _folded(words: Iterable[str]) -> set[str]:
    return {word.casefold() for word in words}


def _as_list(token_ids: Sequence[int] | Tensor) -> list[int]:
    return token_ids.tolist() if isinstance(token_ids, Tensor) else list(token_ids)
