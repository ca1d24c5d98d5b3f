"""Single taps of short convolutions: what one earlier token contributes to the output at one position.

The clean run's contribution of one tap, at one position, is put into the corrupted run. Attrib and its
interval are those of `hooked_ssm.interchange`. Tap 0 is the token itself, tap 1 the one before it. Of a
filter that reaches further only the first `TAPS` are looked at.
"""

from functools import partial

import pandas as pd
import torch
from torch import Tensor

from experiments.evaluation import named_positions
from experiments.runs import Run
from hooked_ssm import HookedSSM
from hooked_ssm.interchange import Interchange
from tasks import Documents

POSITIONS = ("value", "value+1", "value+2")
TAPS = 4


def tap_table(run: Run, *, docs: int, seed: int) -> pd.DataFrame | None:
    """One row a layer, tap and position: hook, tap, position, attrib, low, high. None without convolutions.

    The key is corrupted, unambiguously; seed is of the documents.
    """
    task, model = run.config().test_task, run.model()
    hooks = [f"blocks.{layer}.hook_conv_taps" for layer in range(model.cfg.n_layers)]
    hooks = [hook for hook in hooks if hook in model.hook_dict]
    if not hooks:
        return None
    clean = task.sample(docs, generator=seed, split="test")
    corrupted = task.corrupt(clean, "key", generator=seed + 1).to(model.W_E.device)
    clean = clean.to(model.W_E.device)
    return pd.concat([_of_hook(model, hook, clean, corrupted) for hook in hooks], ignore_index=True)


@torch.no_grad()
def _of_hook(model: HookedSSM, hook: str, clean: Documents, corrupted: Documents) -> pd.DataFrame:
    kept: dict[str, Tensor] = {}

    def read(tokens: Tensor, fwd_hooks: list) -> tuple[Tensor, Tensor]:
        logits = model.run_with_hooks(tokens, fwd_hooks=fwd_hooks, logit_positions=clean.answer_pos)
        at_answer = logits.gather(-1, clean.answer[:, None])[:, 0]
        return (at_answer - logits.logsumexp(-1)).exp(), at_answer

    def keep(taps: Tensor, hook: object) -> None:
        kept["clean"] = taps.clone()

    def put(taps: Tensor, hook: object, tap: int, where: Tensor) -> Tensor:
        rows = torch.arange(len(taps), device=taps.device)
        taps[rows, where, tap] = kept["clean"][rows, where, tap]
        return taps

    p_clean, logit_clean = read(clean.tokens, [(hook, keep)])
    p_corrupted, logit_corrupted = read(corrupted.tokens, [])
    taps = range(min(TAPS, kept["clean"].shape[2]))
    positions = {name: where for name, where in named_positions(clean).items() if name in POSITIONS}
    patched = [
        [read(corrupted.tokens, [(hook, partial(put, tap=tap, where=where))]) for where in positions.values()]
        for tap in taps
    ]
    result = Interchange(
        [str(tap) for tap in taps],
        list(positions),
        p_clean,
        p_corrupted,
        torch.stack([torch.stack([p for p, _ in row]) for row in patched]),
        logit_clean,
        logit_corrupted,
        torch.stack([torch.stack([logit for _, logit in row]) for row in patched]),
    )
    table = result.table().rename(columns={"hook": "tap"})[["tap", "position", "attrib", "low", "high"]]
    return table.assign(tap=table.tap.astype(int), hook=hook)
