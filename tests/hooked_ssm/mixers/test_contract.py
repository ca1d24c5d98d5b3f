"""What every mixer promises: it is causal, resumable, differentiable, and what its equations say."""

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from hooked_ssm import HookedSSM
from hooked_ssm.mixers import AttentionFreeMixer, Mixer

from .case import Case, close, random_input, random_tokens
from .cases import CASES

every_mixer = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
LENGTH = 9


def mixer_of(case: Case, dtype: torch.dtype = torch.float64) -> Mixer:
    return case.model(dtype, n_layers=1).blocks[0].mixer


@every_mixer
def test_output_depends_only_on_the_past(case):
    model, tokens = case.model(), random_tokens()
    logits = model(tokens)
    for t in range(LENGTH):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % model.cfg.d_vocab
        difference = (model(changed) - logits).abs().amax(-1)
        limit = 0 if case.exact else case.tolerance * logits.abs().max()
        assert (difference[:, :t] <= limit).all()
        assert (difference[:, t] > 1e-6).all()


@every_mixer
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "pieces", [[1], [LENGTH], [1] * LENGTH, [1, 8], [8, 1], [2, 3, 4], [3, 1, 5], [5, 4]], ids=str
)
def test_pieces_are_the_whole(case, pieces, batch):
    mixer, u = mixer_of(case), random_input(batch, sum(pieces))
    whole, last = mixer.extend(u)
    assert torch.equal(whole, mixer(u))
    state, outputs = None, []
    for piece in u.split(pieces, dim=1):
        out, state = mixer.extend(piece, state)
        outputs.append(out)
    assert close(torch.cat(outputs, dim=1), whole, case.tolerance)

    further = random_input(batch, 2)
    assert close(mixer.extend(further, state)[0], mixer.extend(further, last)[0], case.tolerance)


@every_mixer
def test_a_state_can_be_continued_more_than_once(case):
    mixer, u = mixer_of(case), random_input()
    _, state = mixer.extend(u[:, :4])
    first, _ = mixer.extend(u[:, 4:], state)
    mixer.extend(-u[:, 4:], state)
    again, _ = mixer.extend(u[:, 4:], state)
    assert torch.equal(first, again)


@every_mixer
@pytest.mark.parametrize("pieces", [[1] * LENGTH, [4, 5]], ids=str)
def test_step_replays_forward(case, pieces):
    model, tokens = case.model(), random_tokens()
    wanted, state, got = model(tokens), None, []
    for piece in tokens.split(pieces, dim=1):
        logits, state = model.step(piece, state)
        got.append(logits)
    assert close(torch.cat(got, dim=1), wanted, case.tolerance)
    assert state.length == LENGTH


@every_mixer
def test_documents_do_not_see_each_other(case):
    model, tokens = case.model(), random_tokens()
    together = model(tokens)
    for document, logits in zip(tokens, together, strict=True):
        assert close(model(document[None])[0], logits, case.tolerance)


@every_mixer
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_numbers_are_the_same_without_a_graph(case, mode):
    mixer, u = mixer_of(case), random_input()
    wanted, _ = mixer.extend(u)
    before = u.clone()
    with mode():
        got, _ = mixer.extend(u)
    assert torch.equal(got, wanted)
    assert torch.equal(u, before)


@every_mixer
def test_gradients_are_those_of_finite_differences(case):
    mixer = mixer_of(case)
    names, parameters = zip(*mixer.named_parameters(), strict=True)
    u = random_input(2, 5).requires_grad_()

    def run(u: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(mixer, dict(zip(names, parameters, strict=True)), (u,))

    assert torch.autograd.gradcheck(run, (u, *parameters), fast_mode=True)


@every_mixer
@pytest.mark.parametrize("length", [1, LENGTH])
def test_values_hooks_and_gradients_are_those_of_the_equations(case, length):
    """In float64 the two differ by the order of sums alone."""
    model, tokens = case.model(n_layers=1), random_tokens(length=length)
    mixer = model.blocks[0].mixer
    model.set_use_attn_result(True)
    _, cache = model.run_with_cache(tokens)
    u = cache["blocks.0.ln1.hook_normalized"].requires_grad_()
    wanted = case.naive(mixer, u)
    hooks = {name.removeprefix("blocks.0.mixer.") for name in cache if ".mixer." in name}
    assert wanted.keys() - {"out"} == hooks
    for name in hooks:
        assert close(cache[f"blocks.0.mixer.{name}"], wanted[name], case.tolerance), name
    assert close(mixer(u), wanted["out"], case.tolerance)

    weight = random_input(length=length).cos()
    parameters = dict(mixer.named_parameters())
    ours = torch.autograd.grad((mixer(u) * weight).sum(), [u, *parameters.values()])
    theirs = torch.autograd.grad((wanted["out"] * weight).sum(), [u, *parameters.values()])
    for name, got, grad in zip(["u", *parameters], ours, theirs, strict=True):
        both_zero = max(got.abs().max(), grad.abs().max()) < 1e-14  # by symmetry: rounding is all there is
        assert both_zero or close(got, grad, case.tolerance), name


@every_mixer
def test_the_causal_matrix_times_the_values_is_what_is_read(case):
    model = case.model(n_layers=1)
    mixer = model.blocks[0].mixer
    _, cache = model.run_with_cache(random_tokens())
    matrix = mixer.effective_attention(cache.of_mixer(0))
    assert (matrix.triu(1) == 0).all()
    if isinstance(mixer, AttentionFreeMixer):
        assert torch.equal(cache.compute_ssm_effective_attention(layer=0), matrix)
    product, read = case.read(cache.of_mixer(0), mixer, matrix)
    assert close(product, read, case.tolerance)


@every_mixer
def test_every_parameter_gets_a_gradient(case):
    model, tokens = case.model(), random_tokens()
    model(tokens, return_type="loss").backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        if name.split(".", 2)[-1] not in case.no_gradient:
            assert p.grad.abs().max() > 1e-7, name


@every_mixer
def test_reset_parameters_draws_from_the_initial_distribution(case):
    """By the two-sample Kolmogorov-Smirnov statistic: chance exceeds 2.2 sqrt(2 / n) once in ten thousand."""

    def draws(reset: bool, seed: int) -> list[dict[str, Tensor]]:
        torch.manual_seed(seed)
        models = [HookedSSM(case.config()) for _ in range(12)]
        if reset:
            for model in models:
                for p in model.parameters():
                    p.data.fill_(7.0)
                model.reset_parameters()
        return [dict(model.named_parameters()) for model in models]

    built, reset = draws(False, 0), draws(True, 1)
    for name in built[0]:
        ours, fresh = (torch.cat([each[name].detach().flatten() for each in many]) for many in (reset, built))
        grid = torch.cat([ours, fresh]).unique()
        shares = [torch.searchsorted(x.sort().values, grid, right=True) / len(x) for x in (ours, fresh)]
        statistic = (shares[0] - shares[1]).abs().max()
        assert statistic <= 2.2 * (2 / len(ours)) ** 0.5, name
        assert (ours != 7.0).all(), name
        if len(fresh.unique()) > built[0][name].numel():  # drawn, not set
            assert not torch.equal(reset[0][name], reset[1][name]), name


@every_mixer
def test_bfloat16_is_near_float32(case):
    """bfloat16 keeps 8 bits; two layers of some ten roundings each stay within 5 % of the logits' size."""
    model, tokens = case.model(torch.bfloat16), random_tokens()
    got = model(tokens)
    assert got.dtype == torch.bfloat16
    loss = model(tokens, return_type="loss")
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())
    _, state = model.step(tokens[:, :4])
    later, _ = model.step(tokens[:, 4:], state)
    wanted = model.float()(tokens)
    for bfloat, exact in ((got, wanted), (later, wanted[:, 4:])):
        assert (bfloat.float() - exact).norm() < 0.05 * exact.norm()
