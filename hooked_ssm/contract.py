"""What holds of every mixer. A test of a mixer of your own calls `check_mixer` on a few settings of it.

Each check raises AssertionError, and says what does not hold and where. They take a few seconds on a CPU, in
float64, on a model of 8 channels whose weights have been moved away from their initial values.

Whether a mixer computes what its equations say is not among them: compare it to a loop over positions.
"""

import json
from typing import Any

import torch
from torch import Tensor

from hooked_ssm.config import HookedSSMConfig, MixerConfig
from hooked_ssm.hooks import Hook
from hooked_ssm.mixers.base import AttentionFreeMixer
from hooked_ssm.model import HookedSSM

BATCH, LENGTH, D_VOCAB = 3, 9, 13
AT = 4  # the position of edits
TOLERANCE = 1e-10  # of the largest entry: float64, and sums in another order
STEP = 1e-6  # of finite differences


def check_mixer(mixer: MixerConfig, **options: Any) -> None:
    """All of the checks below. options: of the `HookedSSMConfig` around the mixer, such as n_heads."""
    sizes = {"d_model": 8, "n_layers": 1, "d_vocab": D_VOCAB, "n_ctx": LENGTH, "device": "cpu", "seed": 0}
    cfg = HookedSSMConfig(**(sizes | options), mixers=mixer)
    check_config(mixer, cfg)
    model = HookedSSM(cfg).double()
    check_reset(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn(p.shape, dtype=p.dtype, generator=generator)
    tokens = torch.randint(D_VOCAB, (BATCH, LENGTH), generator=generator)
    check_causal(model, tokens)
    check_pieces(model, tokens)
    check_gradients(model, tokens)
    for settings in ((), ("use_split_qkv_input", "use_attn_result"), ("use_attn_in",)):
        plain = model(tokens)
        for flag in settings:
            getattr(model, f"set_{flag}")(True)
        require_close(model(tokens), plain, f"with {' and '.join(settings)} the output is another")
        check_hooks(model, tokens)
        check_looking(model, tokens)
        check_memory(model, tokens)
        check_edits(model, tokens)
        for flag in settings:
            getattr(model, f"set_{flag}")(False)
    check_states(model, tokens)
    check_matrix(model, tokens)
    check_write(model, tokens)


def check_config(mixer: MixerConfig, cfg: HookedSSMConfig) -> None:
    """The class is registered, and its settings survive JSON: so `HookedSSM.load` finds them."""
    found = MixerConfig.registry.get(mixer.name)
    require(found is type(mixer), f"{mixer.name!r} is registered as {found}, not {type(mixer)}")
    again = HookedSSMConfig.from_json(json.loads(json.dumps(cfg.to_json())))
    require(again.mixer_list == cfg.mixer_list, f"{mixer} came back from JSON as {again.mixer_list[0]}")


def check_reset(model: HookedSSM) -> None:
    """`reset_parameters` of the modules that own parameters sets every entry of them."""
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(torch.nan)
    model.reset_parameters()
    for name, p in model.named_parameters():
        require(not p.isnan().any(), f"reset_parameters leaves entries of {name} as they are")


def check_causal(model: HookedSSM, tokens: Tensor) -> None:
    """No output before a position moves when the token there does; that position's does."""
    logits = model(tokens)
    for t in range(LENGTH):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % D_VOCAB
        moved = (model(changed) - logits).abs().amax(-1)
        require(small(moved[:, :t], logits), f"another token at position {t} moves outputs before it")
        require((moved[:, t] > 1e-9).all(), f"another token at position {t} does not move the output there")


def check_pieces(model: HookedSSM, tokens: Tensor) -> None:
    """A document in pieces is the whole, a state can be gone on from twice, documents are apart."""
    whole = model(tokens)
    for pieces in ([1] * LENGTH, [4, 5], [1, 3, 5]):
        state, outputs = None, []
        for piece in tokens.split(pieces, dim=1):
            before = state
            logits, state = model.step(piece, before)
            again, _ = model.step(piece, before)
            require(torch.equal(logits, again), f"going on from a state changes it (pieces {pieces})")
            outputs.append(logits)
        require_close(torch.cat(outputs, 1), whole, f"in pieces {pieces} the output is another")
    alone = torch.cat([model(document[None]) for document in tokens])
    require_close(alone, whole, "documents alone have other outputs than in a batch")


def check_gradients(model: HookedSSM, tokens: Tensor) -> None:
    """Every parameter gets a gradient, and it is that of finite differences."""
    parameters = dict(model.named_parameters())
    grads = torch.autograd.grad(
        model(tokens, return_type="loss"), list(parameters.values()), allow_unused=True
    )
    generator = torch.Generator().manual_seed(2)
    for (name, p), grad in zip(parameters.items(), grads, strict=True):
        if grad is None:
            raise AssertionError(f"{name} gets no gradient.")
        direction = torch.randn(p.shape, dtype=p.dtype, generator=generator)
        with torch.no_grad():
            losses = []
            for sign in (1, -1):
                p += sign * STEP * direction
                losses.append(model(tokens, return_type="loss"))
                p -= sign * STEP * direction
        slope, terms = (losses[0] - losses[1]) / (2 * STEP), grad * direction
        require_slope(slope, terms, f"the gradient in {name}")


def check_hooks(model: HookedSSM, tokens: Tensor) -> None:
    """Every hook that `hook_table` has as available fires once, with its declared axes."""
    fired: dict[str, list[torch.Size]] = {}

    def look(tensor: Tensor, hook: Any) -> None:
        fired.setdefault(hook.name, []).append(tensor.shape)

    with model.hooks(fwd_hooks=[(lambda name: True, look)]):
        model(tokens)
    sizes = {"batch": BATCH, "one": 1, "d_model": model.cfg.d_model, "head": model.cfg.n_heads}
    sizes |= dict.fromkeys(("pos", "dest", "src", "lag"), LENGTH)
    for name in available(model):
        shapes, hook = fired.get(name, []), hook_of(model, name)
        require(len(shapes) == 1, f"{name} fires {len(shapes)} times")
        require(bool(hook.meaning), f"{name} does not say what it carries")
        require(not any(c.isdigit() for c in name.rsplit(".", 1)[-1]), f"{name} has a digit in its name")
        axes, shape = hook.shape.split(), list(shapes[0])
        require(axes[:2] in (["batch", "pos"], ["batch", "head"], ["batch", "lag"]), f"{name} is {axes}")
        fits = len(axes) == len(shape) and all(sizes.setdefault(a, n) == n for a, n in zip(axes, shape))
        require(fits, f"{name} is declared {axes}, and carries {shape}")


@torch.no_grad()
def check_looking(model: HookedSSM, tokens: Tensor) -> None:
    """A hook that gives back what it was given, or a copy of it, changes no bit of the output."""
    plain = model(tokens)
    for name in available(model):
        for give in (lambda tensor, hook: tensor, lambda tensor, hook: tensor.clone()):
            seen = model.run_with_hooks(tokens, fwd_hooks=[(name, give)])
            require(torch.equal(seen, plain), f"looking at {name} changes the output")
    require(torch.equal(model.run_with_cache(tokens)[0], plain), "caching changes the output")


def check_memory(model: HookedSSM, tokens: Tensor) -> None:
    """Hooks carry memory of their own: a patch setter that writes in place writes to nothing else."""
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: ".mixer." in name)
    owner = {p.untyped_storage().data_ptr(): f"the weight {name}" for name, p in model.named_parameters()}
    for name, tensor in cache.items():
        pointer = tensor.untyped_storage().data_ptr()
        require(pointer not in owner, f"{name} shares its memory with {owner.get(pointer)}")
        require(is_dense(tensor), f"{name} is expanded, or has gaps (strides {tensor.stride()})")
        owner[pointer] = name


def check_edits(model: HookedSSM, tokens: Tensor) -> None:
    """An edit at a position moves outputs there or later, never earlier; its gradient is the slope."""
    plain, generator = model(tokens), torch.Generator().manual_seed(3)
    weight = torch.randn(plain.shape, dtype=plain.dtype, generator=generator)
    grads: dict[str, Tensor] = {}
    with model.hooks(bwd_hooks=[(is_mixers, lambda grad, hook: grads.update({hook.name: grad.clone()}))]):
        (model(tokens) * weight).sum().backward()
    model.zero_grad()
    for name in filter(is_mixers, available(model)):
        if name not in grads:
            raise AssertionError(f"no gradient arrives at {name}.")
        dim = hook_of(model, name).pos_dim
        change = 0.1 + torch.rand(grads[name].shape, dtype=plain.dtype, generator=generator)
        if "src" in hook_of(model, name).shape:
            change = change.tril()
        index = torch.tensor([t for t in range(LENGTH) if t != AT])
        change = change.index_fill(dim, index, 0.0)

        @torch.no_grad()
        def run(size: float, in_place: bool = False, name: str = name, change: Tensor = change) -> Tensor:
            def edit(tensor: Tensor, hook: Any) -> Tensor | None:
                return tensor.add_(size * change) and None if in_place else tensor + size * change

            return model.run_with_hooks(tokens, fwd_hooks=[(name, edit)])

        edited = run(1.0)
        moved = (edited - plain).abs().amax((0, 2))
        require(small(moved[:AT], plain), f"an edit of {name} at position {AT} moves outputs before it")
        require(moved[AT:].max() > 1e-9, f"an edit of {name} at position {AT} moves nothing")
        slope = ((run(STEP) - run(-STEP)) * weight).sum() / (2 * STEP)
        require_slope(slope, grads[name] * change, f"the gradient at {name}")


def check_states(model: HookedSSM, tokens: Tensor) -> None:
    """A state that is set is carried on, as if the document had begun with it; `states` gives them all.

    "As if": an edit in the whole document is the same edit in a first piece that ends at its position,
    whose state the rest goes on from.
    """
    for layer in range(model.cfg.n_layers):
        name = f"blocks.{layer}.mixer.hook_ssm_state"
        if name not in model.hook_dict:
            continue
        _, cache = model.run_with_cache(tokens)
        computed = cache.compute_ssm_state(layer=layer)
        require_close(computed, cache[name], f"the states that `states` computes are not {name}'s")
        other = cache[name].flip(0)[:, AT]

        def replace(states: Tensor, hook: Any, other: Tensor = other) -> Tensor:
            if states.shape[1] > AT:
                states[:, AT] = other
            return states

        with torch.no_grad(), model.hooks(fwd_hooks=[(name, replace)]):
            whole = model(tokens)
            first, state = model.step(tokens[:, : AT + 1])
        with torch.no_grad():
            rest, _ = model.step(tokens[:, AT + 1 :], state)
        moved = (whole - model(tokens)).abs().amax((0, 2))
        require(moved[AT + 1 :].max() > 1e-9, f"a state set at {name} is not carried on")
        require_close(
            torch.cat([first, rest], 1), whole, f"a state set at {name} is not carried on as in pieces"
        )


def check_matrix(model: HookedSSM, tokens: Tensor) -> None:
    """`effective_attention` is causal, and takes values to what is read, up to a skip from each value."""
    _, cache = model.run_with_cache(tokens)
    for layer, block in enumerate(model.blocks):
        mixer: Any = block.mixer
        seen = cache.of_mixer(layer)
        matrix = mixer.effective_attention(seen)
        require(bool((matrix.triu(1) == 0).all()), "effective_attention has entries above the diagonal")
        if isinstance(mixer, AttentionFreeMixer):
            again = cache.compute_ssm_effective_attention(layer=layer)
            require(torch.equal(again, matrix), "compute_ssm_effective_attention gives another matrix")
        values, read = (seen[name].flatten(2) for name in mixer.matrix_hooks)
        by_head = values.unflatten(2, (matrix.shape[1], -1))
        product = torch.einsum("bhij,bjhd->bihd", matrix, by_head).flatten(2)
        skip = ((read - product) * values).sum((0, 1)) / values.square().sum((0, 1))
        wrong = f"{mixer.matrix_hooks[1]} is not effective_attention times {mixer.matrix_hooks[0]}"
        require_close(product + skip * values, read, wrong)


def check_write(model: HookedSSM, tokens: Tensor) -> None:
    """What a mixer writes is z W_O + b_O, summed over heads."""
    _, cache = model.run_with_cache(tokens)
    for layer, block in enumerate(model.blocks):
        mixer: Any = block.mixer
        z = cache[f"blocks.{layer}.mixer.hook_z"]
        written = torch.einsum("bphd,hdm->bpm", z, mixer.W_O) + mixer.b_O
        require_close(written, cache["mixer_out", layer], "the output is not hook_z W_O + b_O")


def is_mixers(name: str) -> bool:
    return ".mixer." in name


def available(model: HookedSSM) -> list[str]:
    table = model.hook_table()
    return table.name[table.unavailable == ""].tolist()


def hook_of(model: HookedSSM, name: str) -> Hook:
    hook = model.hook_dict[name]
    if not isinstance(hook, Hook):
        raise AssertionError(f"{name} is a {type(hook).__name__}, not a Hook that declares its axes.")
    return hook


def is_dense(tensor: Tensor) -> bool:
    """No two entries in one place, and no gaps."""
    expected = 1
    for stride, size in sorted((n, size) for n, size in zip(tensor.stride(), tensor.shape) if size > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def small(difference: Tensor, beside: Tensor) -> bool:
    return difference.numel() == 0 or bool(difference.abs().max() <= TOLERANCE * beside.abs().max())


def require(holds: bool | Tensor, otherwise: str) -> None:
    if not bool(holds):
        raise AssertionError(f"{otherwise}.")


def require_close(got: Tensor, wanted: Tensor, otherwise: str) -> None:
    require(got.shape == wanted.shape and small(got - wanted, wanted), otherwise)


def require_slope(slope: Tensor, terms: Tensor, what: str) -> None:
    """The sum of the terms is the slope, to a millionth of the terms' size."""
    right = (slope - terms.sum()).abs() <= 1e-6 * terms.abs().sum() + 1e-9
    require(right, f"{what} is not that of finite differences: {terms.sum():.6g}, not {slope:.6g}")
