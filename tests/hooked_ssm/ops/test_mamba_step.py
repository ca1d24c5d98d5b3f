"""One position of a Mamba in one go: against its equations, and where it is taken."""

import inspect
import math

import pytest
import torch
from torch import Tensor

from hooked_ssm import HookedSSM, zoo
from hooked_ssm.mixers import mamba
from hooked_ssm.ops import use_backend
from hooked_ssm.ops.compiled import threads
from hooked_ssm.ops.mamba_step import StepWeights, mamba_step


def sample(batch, d_model, d_inner, d_state, rank, taps, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    weights = StepWeights(
        in_proj=normal(2 * d_inner, d_model),
        conv_w=normal(d_inner, 1, taps),
        conv_b=normal(d_inner),
        x_proj=normal(rank + 2 * d_state, d_inner),
        dt_w=normal(d_inner, rank),
        dt_b=normal(d_inner),
        A_log=normal(d_inner, d_state),
        D=normal(d_inner),
        out_proj=normal(d_model, d_inner),
    )
    return normal(batch, d_model), weights, normal(batch, taps - 1, d_inner), normal(batch, d_inner, d_state)


def equations(u: Tensor, w: StepWeights, conv: Tensor, ssm: Tensor, eps: float | None):
    """Document by document, channel by channel, in Python's numbers."""
    outs, convs, states = [], [], []
    for b in range(len(u)):
        xz = w.in_proj @ u[b]
        x, gate = xz.chunk(2)
        inputs = torch.cat([conv[b], x[None]])
        x = (inputs * w.conv_w[:, 0].T).sum(0) + w.conv_b
        x = x / (1 + torch.exp(-x))
        parts = list((w.x_proj @ x).split([w.dt_w.shape[1], w.A_log.shape[1], w.A_log.shape[1]]))
        if eps is not None:
            parts = [part / (part.square().mean() + eps).sqrt() for part in parts]
        low, B, C = parts
        y, h = x.new_zeros(len(x)), torch.zeros_like(ssm[b])
        for c, before in enumerate((w.dt_w @ low + w.dt_b).tolist()):
            dt = math.log1p(math.exp(before)) if before < 20 else before
            for n in range(len(B)):
                h[c, n] = math.exp(-dt * math.exp(w.A_log[c, n])) * ssm[b, c, n] + dt * x[c] * B[n]
                y[c] += h[c, n] * C[n]
        z = (y + w.D * x) * gate / (1 + torch.exp(-gate))
        outs.append(w.out_proj @ z)
        convs.append(inputs[1:])
        states.append(h)
    return torch.stack(outs), torch.stack(convs), torch.stack(states)


SHAPES = [(1, 5, 130, 3, 2, 4), (2, 7, 6, 4, 1, 1), (6, 3, 4, 1, 3, 2)]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("eps", [None, 0.1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_equations(shape, eps):
    """To the order of sums in float64, of up to 130 products; more than a tile of channels."""
    given = sample(*shape)
    before = [tensor.clone() for tensor in (given[0], *given[1], *given[2:])]
    for got, want in zip(mamba_step(*given, eps), equations(*given, eps), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    after = given[0], *given[1], *given[2:]
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


@pytest.mark.usefixtures("backend")
def test_steps_far_out_have_the_softplus_and_the_decays_of_the_equations():
    u, weights, conv, ssm = sample(1, 5, 40, 3, 2, 2)
    weights = weights._replace(dt_b=torch.linspace(-60, 60, 40, dtype=torch.float64))
    for got, want in zip(
        mamba_step(u, weights, conv, ssm), equations(u, weights, conv, ssm, None), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def test_the_reference_in_single_precision_is_within_its_rounding():
    given = sample(2, 64, 128, 16, 4, 4, torch.float32)
    results = []
    for name in ("numba", "torch"):
        with use_backend(name):
            results.append(mamba_step(*given))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


def test_it_takes_its_arguments_however_they_lie_in_memory():
    u, weights, conv, ssm = sample(2, 5, 6, 4, 2, 3)
    want = mamba_step(u, weights, conv, ssm)

    def turned(x: Tensor) -> Tensor:
        return x.mT.contiguous().mT if x.ndim > 1 else x

    got = mamba_step(turned(u), StepWeights(*map(turned, weights)), turned(conv), turned(ssm))
    for one, two in zip(got, want, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-14, atol=1e-14)


def test_threads_change_no_bit(monkeypatch):
    monkeypatch.setattr(threads, "LEAST_WORK", 1)
    given, before, results = sample(3, 9, 150, 4, 3, 4), torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        try:
            results.append(mamba_step(*given))
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(*pair) for other in results[1:] for pair in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("conv", r"conv must be \[2, 3, 6\] .* got \[1, 3, 6\]"),
        ("ssm", r"ssm must be \[2, 6, 4\] .* got \[1"),
    ],
)
def test_a_state_of_other_documents_is_refused(name, message):
    u, weights, conv, ssm = sample(2, 5, 6, 4, 2, 4)
    state = {"conv": conv, "ssm": ssm}
    state[name] = state[name][:1]
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(mamba_step)(u, weights, state["conv"], state["ssm"])


# In the model ---------------------------------------------------------------------------------------


@pytest.fixture
def model() -> HookedSSM:
    cfg = zoo.mamba(d_model=8, n_layers=2, d_vocab=11, d_state=3, dtype=torch.float64, seed=0)
    return HookedSSM(cfg)


@pytest.fixture
def taken(monkeypatch) -> list[int]:
    """How many documents went through each call."""
    calls: list[int] = []

    def counted(u, *rest):
        calls.append(len(u))
        return mamba_step(u, *rest)

    monkeypatch.setattr(mamba, "mamba_step", counted)
    return calls


TOKENS = torch.randint(11, (3, 9), generator=torch.Generator().manual_seed(0))


def run(model: HookedSSM, pieces: list[int]) -> Tensor:
    state, outputs = None, []
    for piece in TOKENS.split(pieces, dim=1):
        logits, state = model.step(piece, state)
        outputs.append(logits)
    return torch.cat(outputs, dim=1)


@torch.no_grad()
def test_single_tokens_that_follow_a_state_go_through_it(model, taken):
    whole = model(TOKENS)
    got = run(model, [4, 1, 1, 3])
    assert taken == [3] * 4
    torch.testing.assert_close(got, whole, rtol=1e-12, atol=1e-12)


def test_with_a_graph_they_do_not(model, taken):
    got = run(model, [4, 1, 1, 3])
    assert not taken and got.requires_grad
    for wanted, grad in zip(
        torch.autograd.grad(model(TOKENS).square().sum(), list(model.parameters())),
        torch.autograd.grad(got.square().sum(), list(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(grad, wanted, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_whatever_is_attached_in_a_layer_sees_every_token_and_changes_no_bit(model):
    wanted = run(model, [1] * 9)
    names = [name for name in model.hook_dict if name.startswith("blocks.1.mixer.")]
    names = [name for name in names if name not in model.unavailable_hooks()]
    assert len(names) > 12
    for name in names:
        fired = []
        with model.hooks(fwd_hooks=[(name, lambda tensor, hook, fired=fired: fired.append(1))]):
            assert torch.equal(run(model, [1] * 9), wanted) and len(fired) == 9, name


@torch.no_grad()
@pytest.mark.parametrize("setting", ["returned", "in place"])
def test_whatever_edits_in_a_layer_edits_its_tokens(model, setting):
    """Twice the value at every token, set in steps, against the same in a run over all."""
    names = [name for name in model.hook_dict if name.startswith("blocks.1.mixer.")]
    names = [name for name in names if name not in model.unavailable_hooks()]

    def edit(tensor: Tensor, hook) -> Tensor | None:
        if setting == "returned":
            return 2 * tensor
        tensor.mul_(2)

    for name in names:
        if name.endswith("ssm_state"):
            continue  # a run hands out all of them unedited
        with model.hooks(fwd_hooks=[(name, edit)]):
            torch.testing.assert_close(run(model, [1] * 9), model(TOKENS), rtol=1e-11, atol=1e-11, msg=name)


@torch.no_grad()
def test_modules_that_were_hooked_or_replaced_run(model, taken):
    state = model.step(TOKENS[:, :4])[1]
    wanted, _ = model.step(TOKENS[:, 4:5], state)
    taken.clear()
    mixer, fired = model.blocks[0].mixer, []
    handle = mixer.x_proj.register_forward_hook(lambda *given: fired.append(1))
    assert torch.allclose(model.step(TOKENS[:, 4:5], state)[0], wanted) and len(fired) == len(taken) == 1
    handle.remove()

    class Louder(type(mixer.x_proj)):
        def forward(self, input):
            return 2 * super().forward(input)

    mixer.x_proj.__class__ = Louder
    assert not torch.allclose(model.step(TOKENS[:, 4:5], state)[0], wanted)


@torch.no_grad()
def test_an_edit_at_one_token_of_a_continuation_is_carried_on(model, taken):
    """Set in a step that was looked at, grown in steps that were not."""
    name = "blocks.0.mixer.hook_ssm_state"

    def set_at(position: int):
        def edit(states, hook):
            if states.shape[1] > position:
                states[:, position] = 0.5

        return edit

    with model.hooks(fwd_hooks=[(name, set_at(4))]):
        wanted = model(TOKENS)
    _, state = model.step(TOKENS[:, :4])
    with model.hooks(fwd_hooks=[(name, set_at(0))]):
        _, state = model.step(TOKENS[:, 4:5], state)
    got = []
    for t in range(5, 9):
        logits, state = model.step(TOKENS[:, t : t + 1], state)
        got.append(logits)
    assert len(taken) == 2 + 4 * 2
    torch.testing.assert_close(torch.cat(got, 1), wanted[:, 5:], rtol=1e-12, atol=1e-12)


def test_half_precision_generates():
    for preset in (zoo.mamba, zoo.mamba2):
        model = HookedSSM(preset(d_model=256, n_layers=1, d_vocab=300, seed=0, dtype=torch.bfloat16))
        tokens = TOKENS[:1]
        wanted = tokens
        for _ in range(2):
            wanted = torch.cat([wanted, model(wanted)[:, -1:].argmax(-1)], dim=1)
        assert torch.equal(model.generate(tokens, 2), wanted)
