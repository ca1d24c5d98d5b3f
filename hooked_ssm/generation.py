"""Continuing documents, token by token, through the recurrent state."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Generation:
    """Mixin for a model with `step`, what it is made of, and the methods of `Text`."""

    _advance: Any
    _check_tokens: Any
    _logits: Any
    step: Any
    to_string: Any
    to_tokens: Any

    @torch.no_grad()
    def generate(
        self,
        input: Any,
        max_new_tokens: int = 10,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        stop_at: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Continue documents, one token at a time, through the recurrent state.

        Texts may be of different lengths: those of one length are continued together, the shortest first, and
        nothing is padded. Tokens [batch, pos] are documents of one length.

        temperature 0 is greedy. `stop_at`: a token after which a document only repeats it. Text in, text out,
        with its special tokens.
        """
        options = {"temperature": temperature, "top_k": top_k, "stop_at": stop_at, "generator": generator}
        texts = isinstance(input, list) and all(isinstance(text, str) for text in input)
        groups = self._by_length(input) if texts else []
        if len(groups) > 1:
            continued = [""] * len(input)
            for rows in groups:
                some = self.generate([input[row] for row in rows], max_new_tokens, **options)
                for row, text in zip(rows, some, strict=True):
                    continued[row] = text
            return continued
        tokens = self._check_tokens(input)
        last = torch.full((len(tokens),), tokens.shape[1] - 1, device=tokens.device)
        logits, state = self.step(tokens, logit_positions=last)
        new: list[Tensor] = []
        while len(new) < max_new_tokens:
            if new:  # tokens of our own need no check
                resid, state = self._advance(new[-1][:, None], state)
                logits = self._logits(resid, None)[:, 0]
            following = sample(logits, temperature, top_k, generator)
            if stop_at is not None and new:
                following = torch.where(new[-1] == stop_at, new[-1], following)
            new.append(following)
            if stop_at is not None and bool((following == stop_at).all()):
                break
        tokens = torch.cat([tokens, *(token[:, None] for token in new)], dim=1)
        if isinstance(input, Tensor):
            return tokens
        continued = self.to_string(tokens)
        return continued[0] if isinstance(input, str) else continued

    def _by_length(self, texts: list[str]) -> list[list[int]]:
        """The texts' numbers, grouped by how many tokens they have, the fewest first."""
        lengths = [self.to_tokens(text).shape[1] for text in texts]
        return [[row for row, of in enumerate(lengths) if of == length] for length in sorted(set(lengths))]


def sample(
    logits: Float[Tensor, "batch d_vocab"],
    temperature: float,
    top_k: int | None,
    generator: torch.Generator | None,
) -> Int[Tensor, " batch"]:
    """One token a row: the most likely at temperature 0, else drawn from softmax(logits / temperature)."""
    if temperature < 0:
        raise ValueError(f"temperature must not be negative, got {temperature}.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}.")
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
