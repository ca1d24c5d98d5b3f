"""Logits made where they are read are the logits, whatever is done with them."""

import copy
import pickle

import numpy as np
import pytest
import torch
from beartype import beartype
from jaxtyping import Float, jaxtyped
from torch import Tensor

from hooked_ssm.patching.lazy_logits import LazyLogits

BATCH, LENGTH, D_MODEL, D_VOCAB = 3, 5, 4, 7
ROWS, AT, ANSWER = torch.arange(BATCH), torch.tensor([1, 4, 0]), torch.tensor([6, 0, 2])
MASK = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
MASK[0, 2] = MASK[2, 4] = True


class Lazily:
    """Lazy logits, the same ones, and how many rows the unembedding made."""

    def __init__(self, requires_grad: bool = False):
        generator = torch.Generator().manual_seed(0)
        self.final = torch.randn(BATCH, LENGTH, D_MODEL, generator=generator, dtype=torch.float64)
        self.final.requires_grad_(requires_grad)
        self.W_U = torch.randn(D_MODEL, D_VOCAB, generator=generator, dtype=torch.float64)
        self.made = 0
        self.lazy = LazyLogits(self.final, self.unembed)
        self.whole = self.final @ self.W_U

    def unembed(self, final: Tensor) -> Tensor:
        self.made += final[..., 0].numel()
        return final @ self.W_U


READS = {
    "last": (lambda x: x[:, -1], BATCH),
    "last, spelled out": (lambda x: x[:, -1, :], BATCH),
    "dots": (lambda x: x[..., -1, :], BATCH),
    "a number": (lambda x: x[0, -1, 3], 1),
    "a document": (lambda x: x[1], LENGTH),
    "one each": (lambda x: x[ROWS, AT], BATCH),
    "one each, answers": (lambda x: x[ROWS, AT, ANSWER], BATCH),
    "a list": (lambda x: x[[0, 2]], 2 * LENGTH),
    "numpy": (lambda x: x[np.array([0, 2]), np.array([1, 1])], 2),
    "a mask": (lambda x: x[MASK], 2),
    "a mask and answers": (lambda x: x[MASK, ANSWER[:2]], 2),
    "last, some tokens": (lambda x: x[:, -1, 2:5], BATCH),
    "last, two tokens": (lambda x: x[:, -1, [2, 5]], BATCH),
    "all, one token": (lambda x: x[..., 3], BATCH * LENGTH),
    "a new axis": (lambda x: x[:, None, -1], BATCH),
    "a last new axis": (lambda x: x[:, -1, :, None], BATCH * LENGTH),
    "apart": (lambda x: x[ROWS, :, ANSWER], BATCH * LENGTH),
    "a scalar tensor": (lambda x: x[torch.tensor(1), torch.tensor(2)], 1),
    "true": (lambda x: x[True, :, 0], BATCH * LENGTH),
    "then gather": (lambda x: x[:, -1].gather(-1, ANSWER[:, None]), BATCH),
}


@pytest.mark.parametrize(("read", "rows"), READS.values(), ids=READS)
def test_an_index_makes_the_rows_that_it_picks(read, rows):
    logits = Lazily()
    torch.testing.assert_close(read(logits.lazy), read(logits.whole), rtol=0, atol=1e-14)
    assert logits.made == rows and logits.lazy.was_read


def test_a_view_is_made_once():
    logits = Lazily()
    assert logits.lazy[:, -1] is logits.lazy[:, -1] and logits.made == BATCH


@jaxtyped(typechecker=beartype)
def annotated(logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, ""]:
    return logits[:, -1].logsumexp(-1).mean()


USES = {
    "softmax": lambda x: x.softmax(-1),
    "torch.nn.functional": lambda x: torch.nn.functional.log_softmax(x, dim=-1)[:, 1],
    "cross entropy": lambda x: torch.nn.functional.cross_entropy(x[:, -1], ANSWER),
    "arithmetic": lambda x: 2 - x / 3 + x @ torch.ones(D_VOCAB, 2, dtype=x.dtype).sum(1, keepdim=True),
    "einsum": lambda x: torch.einsum("bpv,bqv->bpq", x, x),
    "stacked": lambda x: torch.stack([x, x]),
    "argmax": lambda x: x.argmax(-1),
    "comparison": lambda x: (x > 0).sum(),
    "gather": lambda x: x.gather(-1, ANSWER[:, None, None].expand(-1, LENGTH, 1)),
    "iteration": lambda x: torch.stack([document[-1] for document in x]),
    "topk": lambda x: x.topk(2).values,
    "unbind": lambda x: x.unbind(1)[-1],
    "to": lambda x: x.to(torch.float32),
    "clone": lambda x: x.clone(),
    "data": lambda x: x.data,
    "numpy": lambda x: torch.from_numpy(np.asarray(x).copy()) + torch.from_numpy(x.numpy().copy()),
    "a list": lambda x: torch.tensor(x.tolist(), dtype=x.dtype),
    "printed": lambda x: torch.tensor([len(repr(x)), len(f"{x}")]),
    "annotated": annotated,
    "vmap": lambda x: torch.vmap(lambda row: row.logsumexp(-1))(x),
    "a transform": lambda x: torch.func.grad(lambda y: y.tanh().sum())(x),
    "a gradient": lambda x: torch.autograd.functional.jacobian(lambda y: y[:, -1].exp().sum(), x),
    "checked": lambda x: torch.tensor([torch.is_tensor(x), isinstance(x, Tensor), x.requires_grad]),
    "deep copy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "shapes": lambda x: torch.tensor([*x.shape, *x.size(), x.ndim, x.dim(), len(x), x.numel(), x.size(-1)]),
    "strides": lambda x: torch.tensor([*x.stride(), x.is_contiguous(), x.storage_offset()]),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_anything_else_is_done_to_all_logits(use):
    logits = Lazily()
    with torch.enable_grad():
        found, wanted = use(logits.lazy), use(logits.whole)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)
    assert not isinstance(found, LazyLogits)


def test_shape_dtype_and_device_are_known_without_reading():
    lazy = Lazily().lazy
    assert lazy.shape == (BATCH, LENGTH, D_VOCAB) and lazy.dtype == torch.float64 and lazy.ndim == 3
    assert lazy.device == torch.device("cpu") and len(lazy) == BATCH and lazy.size(1) == LENGTH
    assert lazy.is_floating_point() and not lazy.is_cuda and {lazy: 1}[lazy] == 1
    assert not lazy.was_read


def in_place(x):
    x[:, :, 0] = -9.0
    x += 1
    x.mul_(2)
    return x[:, -1], x


def in_a_view(x):
    last = x[:, -1]
    last[:, 2] = 5.0
    x[:, 0][1] = 7.0
    return x[..., 2], x[1], last, x.exp()


def in_a_view_of_what_all_was_read_of(x):
    last = x[:, -1]
    total = x.sum()
    last -= 3.0
    return total, x[:, -1, 2], x.sum()


def not_in_a_copy(x):
    x[ROWS, AT].zero_()
    return x[ROWS, AT], x.sum()


@pytest.mark.parametrize("edit", [in_place, in_a_view, in_a_view_of_what_all_was_read_of, not_in_a_copy])
def test_edits_are_kept(edit):
    logits = Lazily()
    torch.testing.assert_close(edit(logits.lazy), edit(logits.whole), rtol=0, atol=1e-13)


@pytest.mark.parametrize("read", [READS["last"][0], READS["one each, answers"][0], lambda x: x.tanh()])
def test_gradients_reach_what_logits_are_made_of(read):
    logits = Lazily(requires_grad=True)
    found, wanted = (
        torch.autograd.grad(read(x).square().sum(), logits.final) for x in (logits.lazy, logits.whole)
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_in_inference_mode_too():
    with torch.inference_mode():
        logits = Lazily()
        assert torch.equal(logits.lazy[:, -1].exp(), logits.whole[:, -1].exp())


@pytest.mark.parametrize("index", [(0, LENGTH), (slice(None), -LENGTH - 1), (0, 0, D_VOCAB), (0, 0, 0, 0)])
def test_an_index_out_of_range_is_the_error_that_it_is_elsewhere(index):
    logits = Lazily()
    with pytest.raises(IndexError) as wanted:
        logits.whole[index]
    with pytest.raises(IndexError) as found:
        logits.lazy[index]
    assert str(found.value) == str(wanted.value)


def test_under_autocast_logits_have_the_dtype_that_they_then_have():
    final, W_U = torch.randn(2, 3, 4), torch.randn(4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lazy = LazyLogits(final, lambda rows: rows @ W_U)
        assert lazy.dtype == lazy[:, -1].dtype == (final @ W_U).dtype == torch.bfloat16
