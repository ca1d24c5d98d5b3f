"""TransformerLens's training loop on our models, and its sparse probes on their activations."""

import copy

import pytest
import torch
from torch.utils.data import DataLoader
from transformer_lens.evals import evaluate_on_dataset
from transformer_lens.tools.analysis import fit_sparse_probe
from transformer_lens.tools.training import TrainConfig, train


def documents(n):
    """Documents of one token repeated: what comes next is what came before."""
    tokens = torch.arange(n)[:, None].expand(n, 5) % 11
    return [{"tokens": row.clone()} for row in tokens]


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_training_lowers_the_loss(case, optimizer):
    model = copy.deepcopy(case.model)
    tokens = torch.stack([row["tokens"] for row in documents(11)])
    with torch.no_grad():
        before = float(model(tokens, return_type="loss"))
    config = TrainConfig(
        num_epochs=4,
        batch_size=6,
        lr=0.03,
        optimizer_name=optimizer,
        weight_decay=0.01,
        max_grad_norm=1.0,
        warmup_steps=2,
        device="cpu",
        print_every=None,
    )
    trained = train(model, config, documents(22))
    assert trained is model and model.training
    with torch.no_grad():
        assert float(model.eval()(tokens, return_type="loss")) < before - 0.1
    before = dict(case.model.named_parameters())
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_evaluation_is_the_mean_loss_of_the_batches(case):
    loader = DataLoader(documents(11), batch_size=4)
    loss = evaluate_on_dataset(case.model, loader, device="cpu")
    with torch.no_grad():
        losses = [float(case.model(batch["tokens"], return_type="loss")) for batch in loader]
    assert loss == pytest.approx(sum(losses) / 3)


def test_a_sparse_probe_reads_the_token_off_the_embedding(case):
    """Which of two tokens is here is in one direction of the embedding, and not in the streams at random."""
    tokens = torch.randint(0, 2, (12, 5), generator=torch.Generator().manual_seed(0)) * 4 + 2
    cache = case.cached(tokens)
    labels = (tokens == 6).long().flatten()
    result = fit_sparse_probe(cache["embed"].flatten(0, 1), labels, k=1)
    assert result.metrics.accuracy == 1.0
    difference = (case.model.W_E[6] - case.model.W_E[2]).detach().abs()
    assert int(result.selected_features[0]) == int(difference.argmax())
    late = fit_sparse_probe(cache["resid_post", -1].flatten(0, 1), labels, k=case.model.cfg.d_model)
    assert late.metrics.accuracy > 0.7
