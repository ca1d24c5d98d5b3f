"""What every hook of every mixer promises: it fires once, as declared, and its edits flow, forwards only."""

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hooked_ssm import HookedSSM
from hooked_ssm.mixers import ShortConv

from .case import Case, close, random_tokens
from .cases import CASES

every_mixer = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
# Nothing, and what TransformerLens's edge tools switch on.
SETTINGS = {
    "plain": (),
    "split": ("use_split_qkv_input", "use_attn_result", "use_hook_mlp_in"),
    "attn in": ("use_attn_in",),
}
every_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
LENGTH = 9
P = 4  # the position that edits are made at


def model_of(
    case: Case, setting: tuple[str, ...] = (), dtype: torch.dtype = torch.float64, n_layers: int = 1
) -> HookedSSM:
    model = case.model(dtype, n_layers=n_layers)
    for flag in setting:
        getattr(model, f"set_{flag}")(True)
    return model


def hooks_of(model: HookedSSM) -> list[str]:
    """The names of the hooks that hook_table says can fire."""
    table = model.hook_table()
    return table.name[table.unavailable == ""].tolist()


@every_mixer
@every_setting
def test_every_hook_fires_once_with_its_declared_shape(case, setting):
    model, tokens = model_of(case, setting, n_layers=2), random_tokens()
    seen: dict[str, list[tuple[int, ...]]] = {}

    def look(tensor: Tensor, hook) -> None:
        seen.setdefault(hook.name, []).append(tuple(tensor.shape))

    with model.hooks(fwd_hooks=[(lambda name: True, look)]):
        model(tokens)
    assert sorted(seen) == sorted(hooks_of(model))
    cfg = model.cfg
    sizes = {"batch": 3, "pos": LENGTH, "dest": LENGTH, "src": LENGTH, "lag": LENGTH, "one": 1}
    sizes |= {"d_model": cfg.d_model, "head": cfg.n_heads, "d_mlp": cfg.d_mlp}
    for name, shapes in seen.items():
        axes = model.hook_dict[name].shape.split()
        assert len(shapes) == 1, f"{name} fired {len(shapes)} times"
        assert axes[:2] in (["batch", "pos"], ["batch", "head"], ["batch", "lag"]), name
        assert len(axes) == len(shapes[0]), (name, axes, shapes[0])
        for axis, size in zip(axes, shapes[0], strict=True):
            assert sizes.setdefault(axis, size) == size, (name, axes, shapes[0])


@every_mixer
def test_hooks_fire_in_steps_with_what_they_carry_in_the_whole(case):
    model, tokens = model_of(case), random_tokens()
    _, whole = model.run_with_cache(tokens)
    pieces: dict[str, list[Tensor]] = {}

    def keep(tensor: Tensor, hook) -> None:
        pieces.setdefault(hook.name, []).append(tensor.detach().clone())

    by_position = [name for name in hooks_of(model) if model.hook_dict[name].shape.startswith("batch pos")]
    state = None
    with model.hooks(fwd_hooks=[(name, keep) for name in by_position]):
        for piece in tokens.split([1, 1, 3, 4], dim=1):
            _, state = model.step(piece, state)
    assert sorted(pieces) == sorted(by_position)
    for name, tensors in pieces.items():
        assert len(tensors) == 4, name
        if "tap" in model.hook_dict[name].shape:  # a convolution as long as what there has been so far
            tensors = [F.pad(x, (0, 0, 0, whole[name].shape[2] - x.shape[2])) for x in tensors]
        assert close(torch.cat(tensors, dim=1), whole[name], case.tolerance), name


@every_mixer
@every_setting
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_looking_changes_no_bit(case, setting, dtype):
    model, tokens = model_of(case, setting, dtype), random_tokens()
    wanted, names = model(tokens), hooks_of(model)

    def same(tensor: Tensor, hook) -> Tensor:
        return tensor

    def nothing(tensor: Tensor, hook) -> None:
        return None

    def clone(tensor: Tensor, hook) -> Tensor:
        return tensor.clone()

    for name in names if setting == SETTINGS["plain"] else ():
        assert torch.equal(model.run_with_hooks(tokens, fwd_hooks=[(name, clone)]), wanted), name
    for hook in (same, nothing, clone):
        assert torch.equal(model.run_with_hooks(tokens, fwd_hooks=[(lambda name: True, hook)]), wanted)
    assert torch.equal(model.run_with_cache(tokens)[0], wanted)


@every_mixer
@pytest.mark.parametrize("setting", list(SETTINGS.values())[1:], ids=list(SETTINGS)[1:])
def test_settings_change_how_the_output_is_computed_but_not_the_output(case, setting):
    tokens = random_tokens()
    assert close(model_of(case, setting)(tokens), model_of(case)(tokens), case.tolerance)


def at(tensor: Tensor, hook, position: int) -> Tensor:
    """The part of a hook's tensor that belongs to one position, as a view."""
    return tensor.select(hook.pos_dim, position)


def added(name: str, shape: torch.Size) -> Tensor:
    generator = torch.Generator().manual_seed(len(name))
    return 0.1 + 0.1 * torch.rand(shape, dtype=torch.float64, generator=generator)


@every_mixer
@pytest.mark.parametrize(
    ("setting", "in_place"),
    [(SETTINGS["plain"], False), *((setting, True) for setting in SETTINGS.values())],
    ids=["returned", *SETTINGS],
)
def test_an_edit_at_a_position_moves_the_output_there_and_never_earlier(case, setting, in_place):
    model, tokens = model_of(case, setting), random_tokens()
    wanted = model(tokens)

    def edit(tensor: Tensor, hook) -> Tensor | None:
        edited = tensor if in_place else tensor.clone()
        at(edited, hook, P).add_(added(hook.name, at(edited, hook, P).shape))
        return None if in_place else edited

    for name in hooks_of(model):
        with torch.no_grad():
            moved = (model.run_with_hooks(tokens, fwd_hooks=[(name, edit)]) - wanted).abs().amax(-1)
        limit = 0 if case.exact else case.tolerance * wanted.abs().max()
        assert (moved[:, :P] <= limit).all(), name
        if model.cfg.attn_only and name.endswith("hook_mlp_in"):
            assert (moved == 0).all()  # read by an MLP that is not there
        elif name.split(".")[-1] in case.moves_later:
            assert (moved[:, P + 1 :].amax(1) > 1e-9).all(), name
        else:
            assert (moved[:, P] > 1e-9).all(), name


@every_mixer
def test_an_edit_does_the_same_under_every_name(case):
    model, tokens = model_of(case), random_tokens()

    def edit(tensor: Tensor, hook) -> Tensor:
        return torch.where(tensor.isfinite(), 1.5 * tensor + 0.1, tensor)

    plain, available = model(tokens), set(hooks_of(model))
    aliases = {alias: name for alias, name in model.hook_aliases.items() if name in available}
    assert {alias.split(".")[2] for alias in aliases} >= {"hook_attn_out", "attn", "hook_z"}
    edited = {name: model.run_with_hooks(tokens, fwd_hooks=[(name, edit)]) for name in set(aliases.values())}
    for alias, name in aliases.items():
        assert torch.equal(model.run_with_hooks(tokens, fwd_hooks=[(alias, edit)]), edited[name]), alias
        assert not torch.equal(edited[name], plain), name


@every_mixer
@every_setting
def test_cached_tensors_are_dense_and_memory_of_their_own(case, setting):
    """A patch setter writes in place: it may change neither a weight nor what another hook has shown."""
    model = model_of(case, setting, n_layers=2)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    # Looking at the MLP of a block without one makes the stream after it a new tensor.
    for looked_at in (None, lambda name: "mlp" not in name):
        _, cache = model.run_with_cache(random_tokens(), names_filter=looked_at)
        for name, tensor in cache.items():
            assert is_dense(tensor), (name, tensor.shape, tensor.stride())
            assert tensor.untyped_storage().data_ptr() not in weights, name
        for (one, first), (other, second) in combinations(cache.items(), 2):
            assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr(), (one, other)


@every_mixer
def test_what_a_step_showed_can_be_written_to(case):
    """The state that a step returns is not the memory that its hooks have shown."""
    model, tokens = model_of(case), random_tokens()
    _, state = model.step(tokens[:, :5])
    wanted, _ = model.step(tokens[:, 5:], state)
    shown: list[Tensor] = []
    with model.hooks(fwd_hooks=[(lambda name: True, lambda tensor, hook: shown.append(tensor.detach()))]):
        _, state = model.step(tokens[:, :5])
    for tensor in shown:
        tensor.fill_(3.0)
    assert torch.equal(model.step(tokens[:, 5:], state)[0], wanted)


def is_dense(tensor: Tensor) -> bool:
    """No two entries in one place, and no gaps: strides, sorted, are products of the sizes before them."""
    expected = 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(tensor.stride(), tensor.shape) if size > 1
    ):
        if stride != expected:
            return False
        expected *= size
    return True


@every_mixer
@every_setting
def test_the_gradient_at_a_hook_is_that_of_an_edit_carried_on(case, setting):
    """Against a central difference, with an error of some 1e-9 of the size of the gradient's terms.

    For a state this is the total gradient: through the read at its position and through all later states.
    """
    model, tokens = model_of(case, setting), random_tokens()
    weight = torch.randn(
        3, LENGTH, model.cfg.d_vocab, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    size = 1e-5

    @torch.no_grad()
    def loss_with(name: str, added: Tensor) -> float:
        hooks = [(name, lambda tensor, hook: tensor + added)]
        return float((model.run_with_hooks(tokens, fwd_hooks=hooks) * weight).sum())

    grads: dict[str, Tensor] = {}

    def keep(grad: Tensor, hook) -> None:
        grads[hook.name] = grad.clone()

    with model.hooks(bwd_hooks=[(lambda name: True, keep)]):
        (model(tokens) * weight).sum().backward()
    assert sorted(grads) == sorted(hooks_of(model))

    for name, grad in grads.items():
        hook = model.hook_dict[name]
        direction = torch.randn(grad.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        if "src" in hook.shape:
            direction = direction.tril()
        if name.split(".")[-1] in case.carried:  # setting later entries too would stop the edit there
            direction[:, :P] = direction[:, P + 1 :] = 0
        up, down = loss_with(name, size * direction), loss_with(name, -size * direction)
        terms = grad * direction
        assert abs((up - down) / (2 * size) - terms.sum()) <= 1e-6 * terms.abs().sum() + 1e-9, name


@every_mixer
def test_taps_are_what_earlier_tokens_add_to_the_convolution(case):
    model, tokens = model_of(case), random_tokens()
    _, cache = model.run_with_cache(tokens)
    for conv in (module for module in model.modules() if isinstance(module, ShortConv)):
        x, taps, y = (cache[hook.name] for hook in (conv.hook_conv_in, conv.hook_conv_taps, conv.hook_conv))
        bias = 0 if conv.bias is None else conv.bias
        assert close(taps.sum(2), y - bias, 1e-12)
        for tau in range(conv.d_conv):
            assert (taps[:, :tau, tau] == 0).all()
            from_before = conv.weight[:, 0, conv.d_conv - 1 - tau] * x[:, : LENGTH - tau]
            assert torch.equal(taps[:, tau:, tau], from_before)


@every_mixer
def test_hook_table_explains_every_hook(case):
    table = case.model().hook_table()
    assert table.name.is_unique
    assert (table.meaning.str.len() > 0).all()
    assert not table.name.str.split(".").str[-1].str.contains(r"\d").any()
    mixers = table[table.name.str.contains(".mixer.", regex=False)]
    for name, aliases in zip(mixers.name, mixers.aliases, strict=True):
        _, layer, _, hook = name.split(".")
        assert f"blocks.{layer}.{hook}" in aliases.split(", "), "the generic sweep cannot reach it"
