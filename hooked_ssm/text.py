"""Text in and out of a model that has a tokenizer, with TransformerLens's method names."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


class Text:
    """Mixin. `tokenizer` is a Hugging Face tokenizer, or None for a model of made-up tokens.

    A BOS token is prepended if the tokenizer has one and `cfg.default_prepend_bos` or the call says so.
    """

    tokenizer: Any
    cfg: Any

    def to_tokens(
        self,
        input: Any,
        prepend_bos: bool | None = None,
        truncate: bool = True,
        *,
        padding_side: str = "right",
    ) -> Int[Tensor, "batch pos"]:
        """Text, or a list of texts (padded on the right), as tokens [batch, pos]; tokens as they are.

        The tokenizer's own padding side is not asked. What stands to the right of a document does not reach
        it: its logits are those it has alone. Padding on the left would be read as part of it: ValueError.
        """
        if padding_side != "right":
            raise ValueError(
                "padding must be on the right, where a causal model does not see it before the document, got "
                f"padding_side={padding_side!r}."
            )
        if isinstance(input, Tensor):
            return input if input.ndim == 2 else input[None]
        if not isinstance(input, str) and not (
            isinstance(input, list) and all(isinstance(t, str) for t in input)
        ):
            raise TypeError(
                f"wanted tokens [batch, pos], a text or a list of texts, got {type(input).__name__}."
            )
        tokenizer = self._need_tokenizer()
        texts = [input] if isinstance(input, str) else input
        if not texts:
            raise ValueError("wanted at least one text, got an empty list.")
        rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        prepend = self.cfg.default_prepend_bos if prepend_bos is None else prepend_bos
        if prepend and tokenizer.bos_token_id is not None:
            rows = [[tokenizer.bos_token_id, *row] for row in rows]
        if truncate:
            rows = [row[: self.cfg.n_ctx] for row in rows]
        if len({len(row) for row in rows}) > 1 and tokenizer.pad_token_id is None:
            raise ValueError("texts of different lengths need a tokenizer with a pad token.")
        longest = max(map(len, rows))
        rows = [row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows]
        return torch.tensor(rows, dtype=torch.long, device=self.cfg.device)

    def to_string(self, tokens: Any) -> str | list[str]:
        """Tokens [pos] as a text, tokens [batch, pos] as a list of texts."""
        tokens = torch.as_tensor(tokens)
        if tokens.ndim == 2:
            return [self._decoded(row.tolist()) for row in tokens]
        return self._decoded(tokens.reshape(-1).tolist())

    def to_str_tokens(self, input: Any, prepend_bos: bool | None = None) -> list[str] | list[list[str]]:
        """One text, or the tokens of one document, as the text of each token; of a list, a list of each."""
        if isinstance(input, list):
            return [self.to_str_tokens(each, prepend_bos) for each in input]  # type: ignore[return-value]
        tokens = self.to_tokens(input, prepend_bos)
        if len(tokens) != 1:
            raise ValueError(f"to_str_tokens takes one document or a list of them, got {len(tokens)}.")
        return [self._decoded([token]) for token in tokens[0].tolist()]

    def to_single_token(self, text: str) -> int:
        """The token that is this text. Raises ValueError if it takes more or fewer than one."""
        tokens = self.to_tokens(text, prepend_bos=False)[0].tolist()
        if len(tokens) != 1:
            raise ValueError(f"{text!r} is {len(tokens)} tokens ({tokens}), not one.")
        return tokens[0]

    def _decoded(self, tokens: list[int]) -> str:
        """The tokens' own text: tokenizers may otherwise take away spaces before marks."""
        return self._need_tokenizer().decode(tokens, clean_up_tokenization_spaces=False)

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise ValueError("this model has no tokenizer: give it tokens, or set model.tokenizer.")
        return self.tokenizer
