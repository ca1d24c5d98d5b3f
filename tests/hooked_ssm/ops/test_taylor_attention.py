"""Attention in Taylor features against its definition, and its two paths against each other."""

import pytest
import torch

from hooked_ssm.ops.taylor_attention import (
    CHUNK,
    LONGEST_CHUNK,
    TaylorMemory,
    explicit_taylor_attention,
    taylor_attention,
    taylor_features,
    taylor_scores,
)


def sample(length, *, batch=2, heads=2, f=3, d_value=4, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    shapes = [(batch, length, heads, width) for width in (f, f, d_value)]
    return [torch.randn(shape, generator=g, dtype=dtype).requires_grad_() for shape in shapes]


def by_definition(q, k, v):
    """o_i and n_i as sums over the past of 1 + s + s^2 / 2."""
    reads, normalizers = [], []
    for i in range(v.shape[1]):
        s = (q[:, i : i + 1] * k[:, : i + 1]).sum(-1) / q.shape[-1] ** 0.5
        weights = 1 + s + s**2 / 2
        reads.append((weights[..., None] * v[:, : i + 1]).sum(1))
        normalizers.append(weights.sum(1))
    return torch.stack(reads, 1), torch.stack(normalizers, 1)


def fast(q, k, v, memory=None, **kwargs):
    return taylor_attention(q, k, v, memory, **kwargs)


def explicit(q, k, v, memory=None):
    return explicit_taylor_attention(taylor_features(q), taylor_features(k), v, memory)


def close(got, wanted, tolerance=1e-12):
    for one, other in zip(got, wanted, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= tolerance * other.abs().max()


def with_gradients(outputs, inputs):
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=g, dtype=x.dtype) for x in outputs]
    return [*outputs, *torch.autograd.grad(outputs, inputs, weights)]


@pytest.mark.parametrize("f", [1, 3, 8])
def test_the_product_of_features_is_the_taylor_expansion(f):
    q, k, _ = sample(5, f=f)
    s = (q * k).sum(-1) / f**0.5
    features = taylor_features(q)
    assert features.shape[-1] == 1 + f + f * f and (features[..., 0] == 1).all()
    close([(features * taylor_features(k)).sum(-1)], [1 + s + s**2 / 2])
    assert (taylor_scores(10 * q, k).diagonal(dim1=-2, dim2=-1) >= 0.5).all()


@pytest.mark.parametrize("length", [1, 2, 9, CHUNK + 1, LONGEST_CHUNK + 1])
@pytest.mark.parametrize("path", [fast, explicit], ids=["fast", "explicit"])
def test_reads_and_every_gradient_are_those_of_the_definition(path, length):
    inputs = sample(length, batch=1, f=2, d_value=3)
    wanted = with_gradients(by_definition(*inputs), inputs)
    close(with_gradients(path(*inputs)[0], inputs), wanted)


@pytest.mark.parametrize("chunk", [1, 2, 5, 13, 64])
def test_chunks_change_no_number(chunk):
    inputs = sample(13)
    close(
        with_gradients(taylor_attention(*inputs, chunk=chunk)[0], inputs),
        with_gradients(by_definition(*inputs), inputs),
    )


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("pieces", [[1] * 6, [2, 4], [5, 1], [3, 1, 2]], ids=str)
def test_pieces_are_the_whole(pieces, chunk):
    inputs = sample(6)
    wanted = with_gradients(by_definition(*inputs), inputs)
    for path in (fast, explicit):
        memory, reads = None, []
        for piece in zip(*(x.split(pieces, dim=1) for x in inputs), strict=True):
            kwargs = {"chunk": chunk} if path is fast else {}
            read, memory = path(*piece, memory, **kwargs)
            reads.append(read)
        got = [torch.cat(each, dim=1) for each in zip(*reads, strict=True)]
        close(with_gradients(got, inputs), wanted)
        S, z = memory.split()
        _, k, v = inputs
        features = taylor_features(k)
        close([S, z], [torch.einsum("bphf,bphd->bhfd", features, v), features.sum(1)])


def test_a_short_document_is_read_without_features(monkeypatch):
    def none(x):
        raise AssertionError("features were formed")

    inputs = sample(9)
    module = __import__("sys").modules[taylor_attention.__module__]
    monkeypatch.setattr(module, "taylor_features", none)
    _, memory = taylor_attention(*inputs)
    with pytest.raises(AssertionError, match="features were formed"):
        memory.settled()


def test_a_memory_is_written_to_once():
    """What a document has left to write is as wide as its last piece, not as the document."""
    memory = None
    for piece in zip(*(x.split([3, 1, 1], dim=1) for x in sample(5)), strict=True):
        _, memory = taylor_attention(*piece, memory)
    assert memory.k.shape[2] == memory.v.shape[2] == 1
    settled = TaylorMemory(memory.settled())
    piece = sample(2)
    for one, other in zip(
        taylor_attention(*piece, memory)[0], taylor_attention(*piece, settled)[0], strict=True
    ):
        assert torch.equal(one, other)


def test_gradcheck():
    inputs = sample(5, batch=1, f=2, d_value=2)
    for chunk in (None, 2):
        assert torch.autograd.gradcheck(
            lambda *x, chunk=chunk: tuple(taylor_attention(*x, chunk=chunk)[0]), inputs
        )
    assert torch.autograd.gradcheck(lambda *x: tuple(explicit(*x)[0]), inputs)
