"""Continuing documents, token by token, through the recurrent state."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Generation:
    """Mixin for a model with `step`, `_check_tokens` and the methods of `Text`."""

    _check_tokens: Any
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
        for new in range(max_new_tokens):
            following = sample(logits, temperature, top_k, generator)
            if stop_at is not None and new > 0:
                following = torch.where(tokens[:, -1] == stop_at, tokens[:, -1], following)
            tokens = torch.cat([tokens, following[:, None]], dim=1)
            if new + 1 == max_new_tokens or (stop_at is not None and bool((following == stop_at).all())):
                break
            logits, state = self.step(following[:, None], state, torch.zeros_like(last))
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
