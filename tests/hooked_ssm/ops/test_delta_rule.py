"""delta_rule against a plain loop under autograd, and its two paths against each other."""

import inspect

import pytest
import torch

from hooked_ssm.ops import delta_rule
from hooked_ssm.ops.causal_matrix import delta_rule_matrix
from hooked_ssm.ops.chunked_delta_rule import CHUNK, LONGEST_CHUNK

from .naive_delta_rule import loop, sample

pytestmark = pytest.mark.usefixtures("backend")

NAMES = ["o", "last state", "q", "k", "v", "beta", "log_decay", "initial"]
SHAPES = [
    *(
        (1, 1, 1, 1, 1),
        (2, 1, 2, 3, 2),
        (1, 2, 1, 4, 3),
        (2, 7, 3, 2, 5),
        (1, 63, 2, 16, 4),
        (2, 64, 1, 16, 3),
    ),
    *((1, 65, 2, 24, 2), (1, LONGEST_CHUNK, 1, 24, 3), (1, LONGEST_CHUNK + 1, 2, 24, 3), (2, 130, 1, 24, 4)),
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_decay = pytest.mark.parametrize("decay", [False, True], ids=["kept", "decaying"])
every_start = pytest.mark.parametrize("initial", [False, True], ids=["zero", "initial"])


def same(tensor):
    return tensor


def look(decay):
    return {
        name: same for name in ("edit_decay", "edit_write", "edit_state") if decay or name != "edit_decay"
    }


def naive(q, k, v, beta, log_decay=None, initial=None):
    return loop(q, k, v, beta, None if log_decay is None else log_decay.exp(), initial)[:2]


def results(rule, inputs, **options):
    """o, the last state, and the gradients of a loss on both."""
    o, last = rule(*inputs, **options)
    g = torch.Generator().manual_seed(1)
    grads = [torch.randn(out.shape, generator=g, dtype=torch.float64).to(out.dtype) for out in (o, last)]
    given = iter(torch.autograd.grad((o, last), [x for x in inputs if x is not None], grads))
    return [o, last, *(None if x is None else next(given) for x in inputs)]


def assert_close(got, wanted, tolerance=1e-11):
    """To a multiple of the largest entry. (Gradients are sums whose terms may be larger than they are.)"""
    for name, one, other in zip(NAMES, got, wanted, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            assert one.shape == other.shape and one.dtype == other.dtype, name
            assert one.isfinite().all(), name
            assert (one - other).abs().max() <= tolerance * max(1.0, other.abs().max()), name


@every_shape
@every_decay
@every_start
def test_outputs_and_every_gradient_are_those_of_the_loop(shape, decay, initial):
    inputs = sample(*shape, decay=decay, initial=initial)
    assert_close(results(delta_rule, inputs), results(naive, inputs))


@every_decay
@every_start
@pytest.mark.parametrize("shape", [SHAPES[3], SHAPES[6]], ids=str)
def test_the_explicit_path_is_the_loop_too(shape, decay, initial):
    inputs = sample(*shape, decay=decay, initial=initial)
    assert_close(results(delta_rule, inputs, **look(decay)), results(naive, inputs))


@every_decay
@every_start
@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 100])
def test_chunks_change_nothing_but_rounding(chunk, decay, initial):
    inputs = sample(2, 11, 2, 3, 4, decay=decay, initial=initial)
    assert_close(results(delta_rule, inputs, chunk=chunk), results(naive, inputs))


@every_decay
@every_start
@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("explicit", [False, True], ids=["fast", "explicit"])
def test_gradcheck(chunk, decay, initial, explicit):
    inputs = sample(2, 5, 2, 2, 3, decay=decay, initial=initial)
    given = [x for x in inputs if x is not None]

    def run(*tensors):
        tensors = iter(tensors)
        filled = [None if x is None else next(tensors) for x in inputs]
        return delta_rule(*filled, chunk=chunk, **(look(decay) if explicit else {}))

    assert torch.autograd.gradcheck(run, given, fast_mode=True)


@pytest.mark.parametrize("of", [0, 1], ids=["o", "last state"])
@pytest.mark.parametrize("pos", [5, LONGEST_CHUNK + 5])
@pytest.mark.parametrize("explicit", [False, True], ids=["fast", "explicit"])
def test_a_loss_on_one_of_the_two_results_is_enough(of, pos, explicit):
    inputs = sample(2, pos, 1, 16, 3)
    got, wanted = (
        torch.autograd.grad(out[of].square().sum(), inputs, materialize_grads=True)
        for out in (delta_rule(*inputs, **(look(True) if explicit else {})), naive(*inputs))
    )
    assert_close([None, None, *got], [None, None, *wanted])


@every_decay
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_looking_changes_no_bit(dtype, shape, decay):
    inputs = sample(*shape, decay=decay, initial=shape[1] % 2 == 0, dtype=dtype)
    o, last = delta_rule(*inputs)
    edits = look(decay)
    for looked in (*({name: same} for name in edits), edits, dict.fromkeys(edits, torch.clone)):
        got, got_last = delta_rule(*inputs, **looked)
        assert torch.equal(got, o) and torch.equal(got_last, last)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for got, got_last in (delta_rule(*inputs), delta_rule(*inputs, **edits)):
                assert torch.equal(got, o) and torch.equal(got_last, last)


@pytest.mark.parametrize("cuts", [[1], [36], [64, 65], [110], [3, 100, 101]], ids=str)
@every_decay
def test_pieces_are_the_whole(cuts, decay):
    q, k, v, beta, log_decay, initial = sample(2, 130, 2, 16, 4, decay=decay)
    wanted, wanted_last = delta_rule(q, k, v, beta, log_decay, initial)
    outs, state = [], initial
    for begin, end in zip([0, *cuts], [*cuts, 130]):
        piece = [None if x is None else x[:, begin:end] for x in (q, k, v, beta, log_decay)]
        out, state = delta_rule(*piece, state)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), wanted, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(state, wanted_last, rtol=1e-11, atol=1e-11)


def test_a_batch_and_heads_are_each_on_their_own():
    inputs = sample(3, 40, 4, 5, 6)
    o, last = delta_rule(*inputs)
    for b in range(3):
        for h in range(4):
            one = [x[b : b + 1, :, h : h + 1] for x in inputs[:5]]
            got, got_last = delta_rule(*one, inputs[5][b : b + 1, h : h + 1])
            torch.testing.assert_close(got, o[b : b + 1, :, h : h + 1], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(got_last, last[b : b + 1, h : h + 1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pos", [9, LONGEST_CHUNK + 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_decays_may_be_0_and_next_to_it(pos, dtype):
    """Logarithms down to minus infinity, next to decays of almost 1 whose digits they must not cost."""
    inputs = sample(2, pos, 1, 8, 3, dtype=dtype)
    with torch.no_grad():
        inputs[4] *= 0.1
        for t, value in enumerate((-torch.inf, -1e30, -1e4, -300.0)):
            inputs[4][:, 1 + 2 * t] = value
    tolerance = 1e-11 if dtype == torch.float64 else 2e-4
    assert_close(results(delta_rule, inputs), results(naive, inputs), tolerance)


def test_beta_one_recalls_the_last_value_written_under_a_key():
    """Two keys at right angles. The second value under the first key replaces the first, the other stays."""
    k = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]).view(1, 5, 1, 2)
    q = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]).view(1, 5, 1, 2)
    v = torch.tensor([2.0, 3.0, 5.0, 7.0, 9.0]).view(1, 5, 1, 1)
    beta = torch.ones(1, 5, 1)
    assert delta_rule(q, k, v, beta)[0].flatten().tolist() == [2.0, 2.0, 5.0, 3.0, 5.0]
    halved, last = delta_rule(q, k, v, beta, torch.full_like(beta, 0.5).log())
    assert halved.flatten().tolist() == pytest.approx([2.0, 1.0, 5.0, 0.75, 1.25])
    assert last.flatten().tolist() == pytest.approx([1.25, 0.375])


@every_decay
def test_the_causal_matrix_is_the_rule(decay):
    q, k, v, beta, log_decay, _ = sample(2, 37, 2, 4, 3, decay=decay)
    factors = None
    if log_decay is not None:
        factors = log_decay.detach().exp()
        factors[:, 5], factors[:, 9] = 0.0, -0.5  # as an edit may set them
    matrix = delta_rule_matrix(q, k, beta, factors)
    assert (matrix.triu(1) == 0).all()
    wanted = loop(q, k, v, beta, factors)[0]
    torch.testing.assert_close(torch.einsum("bhij,bjhd->bihd", matrix, v), wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("edits", [{}, look(True)], ids=["fast", "explicit"])
def test_half_precision_is_computed_in_float32(dtype, edits):
    inputs = [x.detach().to(dtype) for x in sample(2, 40, 2, 8, 4)]
    o, last = delta_rule(*inputs, **edits)
    wanted, wanted_last = delta_rule(*(x.float() for x in inputs))
    assert o.dtype == dtype and last.dtype == torch.float32
    assert torch.equal(o, wanted.to(dtype)) and torch.equal(last, wanted_last)
    assert torch.equal(delta_rule_matrix(*inputs[:2], inputs[3]).isfinite().all(), torch.tensor(True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": (2, 5, 2, 4)}, ValueError, r"k must have shape \(2, 5, 2, 3\).*got \(2, 5, 2, 4\)"),
        ({"q": (2, 4, 2, 3)}, ValueError, r"q must have shape \(2, 5, 2, 3\).*got \(2, 4, 2, 3\)"),
        ({"q": (2, 5, 6)}, ValueError, r"q must be \[batch, pos, head, d_key\].*\(2, 5, 6\)"),
        ({"v": (2, 0, 2, 4)}, ValueError, r"at least one position, got .*\(2, 0, 2, 4\)"),
        ({"beta": (2, 5, 1)}, ValueError, r"beta must have shape \(2, 5, 2\).*got \(2, 5, 1\)"),
        ({"log_decay": (2, 5)}, ValueError, r"log_decay must have shape \(2, 5, 2\).*got \(2, 5\)"),
        (
            {"initial": (2, 2, 4, 3)},
            ValueError,
            r"initial must have shape \(2, 2, 3, 4\).*got \(2, 2, 4, 3\)",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, error, message):
    names = ["q", "k", "v", "beta", "log_decay", "initial"]
    inputs = dict(zip(names, sample(2, 5, 2, 3, 4), strict=True))
    inputs |= {name: torch.zeros(shape, dtype=torch.float64) for name, shape in change.items()}
    with pytest.raises(error, match=message):
        inspect.unwrap(delta_rule)(**inputs)  # beneath the type checker, if the tests run with one


def test_a_chunk_of_no_positions_and_decays_that_are_not_there_are_refused():
    inputs = sample(1, 3, 1, 2, 2, decay=False)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        delta_rule(*inputs, chunk=0)
    with pytest.raises(ValueError, match="no decays to edit"):
        delta_rule(*inputs, edit_decay=same)


def test_long_documents_are_taken_in_several_chunks():
    assert CHUNK < LONGEST_CHUNK < SHAPES[-1][1]
