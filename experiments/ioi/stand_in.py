"""A small Mamba that has learned the study's documents, and nothing else.

`python -m experiments.ioi.stand_in DIR`: some minutes on one processor. It stands in for a language model
where none can be downloaded, and shows what the study finds in a model that is known to do the task. What it
finds says nothing about language models.
"""

import argparse
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from experiments.ioi.prompts import NAMES, OBJECTS, PLACES, TEMPLATES, Words, draw
from experiments.ioi.study import Study
from hooked_ssm import HookedSSM, zoo

BEGIN = "<begin>"


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token for every word and mark of the study's documents."""
    templates = " ".join(re.sub(r"\{\w+\}", " ", text) for texts in TEMPLATES.values() for text in texts)
    words = dict.fromkeys([BEGIN, *re.findall(r"\w+|[^\w\s]", templates), *NAMES, *PLACES, *OBJECTS])
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=BEGIN))
    backend.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    special = {"bos_token": BEGIN, "eos_token": BEGIN, "pad_token": BEGIN, "unk_token": BEGIN}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def stand_in(
    folder: Path,
    *,
    steps: int = 600,
    batch_size: int = 96,
    d_model: int = 64,
    n_layers: int = 4,
    seed: int = 0,
) -> HookedSSM:
    """Train it, and write it into the folder. The loss is of the answer alone.

    Initial embeddings have unit norm and linear maps PyTorch's scale, as in the other small models here.
    """
    tokenizer = word_tokenizer()
    cfg = zoo.mamba(
        d_model=d_model, n_layers=n_layers, d_vocab=len(tokenizer), embed_std=d_model**-0.5, seed=seed
    )
    model = HookedSSM(cfg, tokenizer)
    words, asked = Words.of(model, people=2), Study(model="").asked
    generator = torch.Generator().manual_seed(seed + 2**20)  # not the study's documents
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    warm, rest = max(1, steps // 10), max(1, steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 0.02 + 0.98 * (1 - step / rest))
    )
    bar = tqdm(range(steps), desc="stand-in", delay=2.0)
    for step in bar:
        template, pattern = asked[step % len(asked)]
        prompts = draw(model, words, template, pattern, batch_size, generator)
        last = torch.full((batch_size,), prompts.end)
        logits = model(prompts.clean, logit_positions=last)
        loss = F.cross_entropy(logits, prompts.answer)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.save_pretrained(folder)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    asked = parser.parse_args()
    stand_in(asked.folder, steps=asked.steps)
