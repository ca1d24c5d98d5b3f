"""HookedSSM: embedding, blocks, final norm, unembedding, and the surface that TransformerLens's tools use."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hooked_ssm import loading, saving
from hooked_ssm.block import Block
from hooked_ssm.config import HookedSSMConfig
from hooked_ssm.generation import Generation
from hooked_ssm.hooked_root import HookedRoot
from hooked_ssm.hooks import Hook
from hooked_ssm.layers import NORMS, Embed, PosEmbed, Unembed
from hooked_ssm.ops.memory import matrix_product
from hooked_ssm.text import Text

ReturnType = Literal["logits", "loss", "both"] | None


class ModelState(NamedTuple):
    """Where a document stands: one state a layer, and how many positions it has had."""

    layers: list[Any]
    length: int


class HookedSSM(HookedRoot, Text, Generation):
    """A stack of mixers of any architecture, all of whose activations are hook points.

    Starts in evaluation mode, as TransformerLens's tools want it; no part of it depends on the mode.
    Initial weights are drawn from the global random state, or from `cfg.seed` without touching that.
    """

    def __init__(self, cfg: HookedSSMConfig, tokenizer: Any = None):
        super().__init__()
        self.cfg = cfg = copy.copy(cfg)  # its flags are this model's own
        self.tokenizer = tokenizer
        with _seeded(cfg.seed):
            self.embed = Embed(cfg)
            self.hook_embed = Hook("batch pos d_model", "token embedding")
            if cfg.positional_embedding_type == "standard":
                self.pos_embed = PosEmbed(cfg)
                self.hook_pos_embed = Hook("batch pos d_model", "position embedding")
            self.blocks = nn.ModuleList([Block(mixer, cfg) for mixer in cfg.mixer_list])
            self.ln_final = NORMS[cfg.final_norm](cfg.d_model, cfg.eps)
            self.unembed = Unembed(cfg)
        self.to(device=cfg.device, dtype=cfg.dtype)
        self.eval()
        self.setup()

    # Running ------------------------------------------------------------------------------------------

    def forward(
        self,
        input: Any,
        return_type: ReturnType = "logits",
        *,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        logit_positions: Int[Tensor, " batch"] | Bool[Tensor, "batch pos"] | None = None,
    ) -> Any:
        """Run the model.

        input: tokens [batch, pos], text (with a tokenizer), or, with `start_at_layer`, the residual stream
            [batch, pos, d_model] before that layer.
        return_type: "logits", "loss" (mean next-token cross entropy), "both" or None.
        stop_at_layer: return the residual stream before this layer (negative counts from the end).
        logit_positions: unembed only here: one position a document gives logits [batch, d_vocab], a mask
            [batch, pos] gives [selected, d_vocab] in row order.

        Raises ValueError or TypeError for inputs of the wrong shape or dtype and tokens out of range.
        """
        for name, layer in (("start_at_layer", start_at_layer), ("stop_at_layer", stop_at_layer)):
            if layer is not None and abs(layer) > self.cfg.n_layers:
                raise ValueError(f"{name} must be within {self.cfg.n_layers} layers, got {layer}.")
        if start_at_layer is None:
            tokens = self._check_tokens(input)
            resid = self._embed(tokens, 0)
        else:
            tokens, resid = None, self._check_resid(input)
        for block in self.blocks[start_at_layer:stop_at_layer]:
            resid = block(resid)
        if stop_at_layer is not None:
            return resid
        if return_type is None:
            self.ln_final(resid)
            return None
        if return_type == "logits":
            return self._logits(resid, logit_positions)
        if return_type not in ("loss", "both"):
            raise ValueError(f"return_type must be 'logits', 'loss', 'both' or None, got {return_type!r}.")
        if tokens is None or logit_positions is not None:
            raise ValueError(
                "a loss needs tokens and all logits: leave out start_at_layer and logit_positions."
            )
        if tokens.shape[1] < 2:
            raise ValueError(f"a next-token loss needs documents of 2 tokens or more, got {tokens.shape[1]}.")
        logits = self._logits(resid, None)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        return (logits, loss) if return_type == "both" else loss

    def step(
        self,
        tokens: Int[Tensor, "batch pos"],
        state: ModelState | None = None,
        logit_positions: Int[Tensor, " batch"] | Bool[Tensor, "batch pos"] | None = None,
    ) -> tuple[Tensor, ModelState]:
        """Logits at the given tokens, which follow those already in `state`, and the state after them.

        Any number of tokens at a time; `state=None` starts a document. All hooks fire, at these positions.
        """
        if self.cfg.use_split_qkv_input or self.cfg.use_attn_in:
            raise ValueError(
                "inputs split by head work on whole documents, not step by step: call "
                "set_use_split_qkv_input(False) and set_use_attn_in(False) first."
            )
        resid, after = self._advance(self._check_tokens(tokens), state)
        return self._logits(resid, logit_positions), after

    def _advance(
        self, tokens: Int[Tensor, "batch pos"], state: ModelState | None
    ) -> tuple[Float[Tensor, "batch pos d_model"], ModelState]:
        """The final residual stream at tokens, which follow `state`, and the state after them."""
        start = 0 if state is None else state.length
        resid, layers = self._through(self._embed(tokens, start), None if state is None else state.layers)
        return resid, ModelState(layers, start + tokens.shape[1])

    def _embed(self, tokens: Int[Tensor, "batch pos"], start: int) -> Float[Tensor, "batch pos d_model"]:
        resid = self.hook_embed(self.embed(tokens))
        if self.cfg.positional_embedding_type == "standard":
            batch, length = tokens.shape
            resid = resid + self.hook_pos_embed(self.pos_embed(batch, start, start + length))
        return resid

    def _through(self, resid: Tensor, states: list[Any] | None) -> tuple[Tensor, list[Any]]:
        after: list[Any] = []
        for layer, block in enumerate(self.blocks):
            resid, state = block.extend(resid, None if states is None else states[layer])  # type: ignore
            after.append(state)
        return resid, after

    def _logits(self, resid: Tensor, positions: Tensor | None) -> Tensor:
        if positions is not None:
            self._check_positions(positions, resid.shape[:2])
        final = self.ln_final(resid)
        if positions is not None:
            if positions.dtype == torch.bool:
                final = final[positions]
            else:
                final = final[torch.arange(len(final), device=final.device), positions]
        return self.unembedded(final)

    def unembedded(self, final: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """The logits of what the final norm gives."""
        return matrix_product(final, self.W_U)

    def _check_positions(self, positions: Tensor, shape: torch.Size) -> None:
        batch, length = shape
        is_mask = positions.dtype == torch.bool
        if positions.shape != (shape if is_mask else shape[:1]):
            raise ValueError(
                f"logit_positions must be [batch={batch}] or a mask [batch={batch}, pos={length}], "
                f"got {positions.dtype} {list(positions.shape)}."
            )
        if not is_mask:
            low, high = (int(x) for x in positions.aminmax())
            if low < 0 or high >= length:
                raise ValueError(
                    f"logit_positions must lie in 0..{length - 1}, got values from {low} to {high}."
                )

    def _check_tokens(self, input: Any) -> Int[Tensor, "batch pos"]:
        tokens = input if isinstance(input, Tensor) else self.to_tokens(input)
        if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
            raise TypeError(f"tokens must be integers [batch, pos], got {tokens.dtype} {list(tokens.shape)}.")
        if tokens.ndim != 2 or 0 in tokens.shape:
            raise ValueError(
                f"tokens must be [batch, pos] with at least one of each, got shape {list(tokens.shape)}."
            )
        low, high = (int(x) for x in tokens.aminmax())
        if low < 0 or high >= self.cfg.d_vocab:
            raise ValueError(
                f"tokens must lie in 0..{self.cfg.d_vocab - 1} (d_vocab={self.cfg.d_vocab}), "
                f"got values from {low} to {high}."
            )
        return tokens

    def _check_resid(self, resid: Any) -> Float[Tensor, "batch pos d_model"]:
        if not isinstance(resid, Tensor) or resid.ndim != 3 or resid.shape[-1] != self.cfg.d_model:
            got = list(resid.shape) if isinstance(resid, Tensor) else type(resid).__name__
            raise ValueError(
                "with start_at_layer the input is a residual stream "
                f"[batch, pos, d_model={self.cfg.d_model}], got {got}."
            )
        return resid

    # Weights ------------------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "HookedSSM":
        """What `to`, `double`, `cuda` and the like are made of: cfg says where and what the weights are."""
        super()._apply(fn, recurse)
        self.cfg.device, self.cfg.dtype = str(self.W_E.device), self.W_E.dtype
        return self

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        return self.embed.W_E

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        return self.embed.W_E.T if self.cfg.tie_embeddings else self.unembed.W_U

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        return self.W_E.new_zeros(self.cfg.d_vocab)

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """Sum of the biases written to the residual stream before `layer` (or before its MLP)."""
        bias = self.W_E.new_zeros(self.cfg.d_model)
        mlp_input = mlp_input and not self.cfg.parallel_attn_mlp
        for index, block in enumerate(self.blocks):
            if index < layer or (index == layer and mlp_input):
                bias = bias + block.mixer.b_O  # type: ignore[union-attr]
            if index < layer and include_mlp_biases and block.mlp is not None:
                bias = bias + block.mlp.b_out  # type: ignore[union-attr]
        return bias

    def tokens_to_residual_directions(self, tokens: Any) -> Float[Tensor, "*tokens d_model"]:
        """The direction in the normalised final residual whose dot product is the token's logit.

        The final norm's weight, and its centring, are in the direction, so that direct logit attribution is
        right without folding weights. (Its bias adds the same constant whatever the residual.)
        """
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)
        tokens = torch.as_tensor(tokens, device=self.W_E.device)
        directions = self.W_U.T[tokens] * self.ln_final.w
        if self.cfg.final_norm == "LN":
            directions = directions - directions.mean(-1, keepdim=True)
        return directions

    def blocks_with(self, name: str) -> list[tuple[int, nn.Module]]:
        """(layer, block) for every block that has an attribute or submodule of this name.

        "attn" is a mixer with query, key and value weights: others are only `mixer`.
        """

        def has(block: nn.Module) -> bool:
            return hasattr(block.mixer, "W_Q") if name == "attn" else getattr(block, name, None) is not None

        return [(layer, block) for layer, block in enumerate(self.blocks) if has(block)]

    def tl_parameters(self) -> dict[str, Tensor]:
        """The weights under TransformerLens's names: a mixer's under `attn`, and W_O and W_U always."""
        weights: dict[str, Tensor] = {
            name.replace(".mixer.", ".attn."): p for name, p in self.named_parameters()
        }
        for layer, block in enumerate(self.blocks):
            weights[f"blocks.{layer}.attn.W_O"] = block.mixer.W_O  # type: ignore[assignment]
        return {**weights, "unembed.W_U": self.W_U}

    def reset_parameters(self) -> None:
        """Draw all weights anew; with `cfg.seed`, the same ones every time."""
        with _seeded(self.cfg.seed, self.W_E.device):
            for module in self.modules():
                if module is not self and hasattr(module, "reset_parameters"):
                    module.reset_parameters()  # type: ignore[operator]

    # Files --------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors into `folder`, each in one step."""
        saving.save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None) -> "HookedSSM":
        """The model saved in `folder`. FileNotFoundError or ValueError say what is wrong with it."""
        return saving.load(cls, Path(folder), device)

    def save_pretrained(self, folder: str | Path) -> None:
        """`save`, and the tokenizer beside it if there is one: a folder for `from_pretrained`."""
        self.save(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    @classmethod
    def from_pretrained(
        cls,
        source: Any,
        *,
        revision: str | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        tokenizer: Any = None,
        **options: Any,
    ) -> "HookedSSM":
        """A published model: `loading.SUPPORTED` lists the architectures.

        source: a name on the Hugging Face Hub, a folder, or a live model of transformers or mamba_ssm, whose
            weights are copied.
        dtype: that of the checkpoint by default, but at least float32.
        revision, cache_dir, local_files_only: as in `huggingface_hub`.
        tokenizer: instead of the one beside the weights, if there is one: itself, or its name or folder.
        options: n_ctx, n_heads (of mixers without heads: into how many groups their channels go),
            default_prepend_bos, model_name of the config.

        No pickled code is run. FileNotFoundError, OSError (no network) and ValueError say what is wrong with
        the source; what its config asks for and a HookedSSM does not do is named.
        """
        return loading.from_pretrained(
            cls,
            source,
            revision=revision,
            dtype=dtype,
            device=device,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            tokenizer=tokenizer,
            **options,
        )


@contextmanager
def _seeded(seed: int | None, device: torch.device | None = None) -> Iterator[None]:
    """The device's (CPU's) random numbers from `seed` inside, as before outside. None changes nothing."""
    if seed is None:
        yield
        return
    # Not torch.manual_seed, which seeds every device.
    generator = torch.default_generator
    if device is not None and device.type == "cuda":
        generator = torch.cuda.default_generators[device.index]
    state = generator.get_state()
    try:
        generator.manual_seed(seed)
        yield
    finally:
        generator.set_state(state)
