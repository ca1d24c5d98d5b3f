"""Documents are continued as full forward passes would continue them."""

import pytest
import torch

from hooked_ssm import HookedSSM, layers
from hooked_ssm.generation import sample
from hooked_ssm.ops import memory
from hooked_ssm.ops.memory import product_of_few_rows

from .models import D_VOCAB, scattered


@pytest.fixture(params=["attention", "mamba", "hybrid"])
def model(request: pytest.FixtureRequest) -> HookedSSM:
    return scattered(request.param)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(D_VOCAB, (3, 7), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["attention", "mamba", "hybrid"])
def test_greedy_generation_takes_the_likeliest_token_of_full_forwards(kind, tokens):
    model, wanted = scattered(kind, tie_embeddings=False), tokens
    for _ in range(5):
        wanted = torch.cat([wanted, model(wanted)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(model.generate(tokens, 5), wanted)
    assert torch.equal(model.generate(tokens, 0), tokens)
    assert torch.equal(model.generate(tokens, 1), wanted[:, :8])
    assert len(wanted[:, 7:].unique()) > 1


def test_generation_leaves_no_graph_and_no_hooks(model, tokens):
    before = tokens.clone()
    assert not model.generate(tokens, 2).requires_grad
    assert torch.equal(tokens, before) and not model.list_hooks()


def test_sampling_is_reproducible_with_a_generator(model, tokens):
    def draw(seed: int, **options) -> torch.Tensor:
        return model.generate(
            tokens, 5, temperature=1.5, generator=torch.Generator().manual_seed(seed), **options
        )

    state = torch.get_rng_state()
    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(draw(0, top_k=1), model.generate(tokens, 5))


def test_samples_follow_the_softmax_at_the_temperature():
    """Shares of 20 000 draws, to four standard errors of the least certain share."""
    logits = torch.tensor([[0.3, -0.5, 1.2, 0.0]]).expand(20_000, -1)
    generator = torch.Generator().manual_seed(0)
    for temperature, top_k in ((0.5, None), (2.0, None), (1.0, 2), (1.0, 9)):
        drawn = sample(logits, temperature, top_k, generator)
        kept = logits[0].clone()
        if top_k == 2:
            kept[[1, 3]] = -torch.inf
        wanted = (kept / temperature).softmax(-1)
        shares = drawn.bincount(minlength=4) / 20_000
        assert (shares - wanted).abs().max() < 4 * (0.25 / 20_000) ** 0.5
        assert (shares[wanted == 0] == 0).all()


def test_generation_stops_where_it_is_told_to(model, tokens):
    free = model.generate(tokens, 5)[:, 7:]
    stop = int(free[0, 1])
    wanted = []
    for row in free.tolist():
        ended = row.index(stop) if stop in row else 5
        wanted.append(row[:ended] + [stop] * (5 - ended))
    wanted = torch.tensor(wanted)
    all_ended = [bool((wanted[:, n] == stop).all()) for n in range(5)]
    length = all_ended.index(True) + 1 if True in all_ended else 5
    assert torch.equal(model.generate(tokens, 5, stop_at=stop)[:, 7:], wanted[:, :length])


def test_generation_ends_once_every_document_has(model):
    tokens = torch.tensor([[1, 2, 3]])
    (token,) = model.generate(tokens, 1)[:, 3].tolist()
    assert model.generate(tokens, 9, stop_at=token).shape == (1, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature must not be negative, got -1.0"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"temperature": 1.0, "top_k": 0}, "top_k must be at least 1, got 0"),
    ],
)
def test_impossible_ways_to_sample_are_refused(model, tokens, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate(tokens, 2, **options)


@pytest.mark.parametrize("gated", [False, True], ids=["MLP", "gated MLP"])
@torch.no_grad()
def test_matrices_too_large_for_a_cache_are_read_once_a_token(gated, monkeypatch):
    """Those of W_O, MLPs and logits have a product of their own for single tokens: it is the same product."""
    options = {"act_fn": "silu", "gated_mlp": True} if gated else {}
    model = scattered("attention", d_model=256, n_layers=1, d_vocab=300, d_mlp=600, **options)
    tokens = torch.randint(300, (2, 6), generator=torch.Generator().manual_seed(0))
    wanted, state, steps = model(tokens), None, []
    read: list[tuple[int, ...]] = []

    def counted(a, b, bias=None):
        read.append(tuple(b.shape))
        return product_of_few_rows(a, b, bias)

    for module in (layers, memory):
        monkeypatch.setattr(module, "product_of_few_rows", counted)
    for token in tokens.split(1, dim=1):
        logits, state = model.step(token, state)
        steps.append(logits)
    assert len(read) == 6 * (5 if gated else 4)  # W_O, the MLP's, W_U
    torch.testing.assert_close(torch.cat(steps, dim=1), wanted, rtol=1e-11, atol=1e-11)
