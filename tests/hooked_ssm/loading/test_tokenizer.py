"""The tokenizer beside the weights, and what it does to text: as in TransformerLens, padded on the right."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import PreTrainedTokenizerFast

from hooked_ssm import HookedSSM

from .sources import random_model

WORDS = ["<|endoftext|>", "the", "cat", "sat", "on", "a", "mat", "."]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=WORDS[0], eos_token=WORDS[0])


@pytest.fixture
def model(tokenizer, tmp_path) -> HookedSSM:
    random_model("mamba").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return HookedSSM.from_pretrained(tmp_path)


def test_the_tokenizer_beside_the_weights_is_the_models(model):
    assert model.to_tokens("the cat sat").tolist() == [[0, 1, 2, 3]]
    assert model.to_str_tokens("the cat") == ["<|endoftext|>", "the", "cat"]
    assert model.to_string(torch.tensor([1, 2])) == "the cat"
    assert model.to_single_token("mat") == 6
    assert isinstance(model.generate("the cat", 3), str)


def test_there_need_not_be_one(tmp_path, tokenizer):
    random_model("mamba").save_pretrained(tmp_path)
    assert HookedSSM.from_pretrained(tmp_path).tokenizer is None
    assert HookedSSM.from_pretrained(tmp_path, tokenizer=tokenizer).tokenizer is tokenizer
    assert HookedSSM.from_pretrained(random_model("mamba"), tokenizer=tokenizer).tokenizer is tokenizer


def test_it_can_be_named(tmp_path, tokenizer):
    random_model("mamba").save_pretrained(tmp_path / "weights")
    tokenizer.save_pretrained(tmp_path / "words")
    for name in (tmp_path / "words", str(tmp_path / "words")):
        model = HookedSSM.from_pretrained(tmp_path / "weights", tokenizer=name)
        assert model.to_tokens("the cat").tolist() == [[0, 1, 2]]
    with pytest.raises(FileNotFoundError, match="no tokenizer in the folder .*weights"):
        HookedSSM.from_pretrained(random_model("mamba"), tokenizer=tmp_path / "weights")


def test_a_missing_pad_or_bos_token_is_the_end_of_text_token(tokenizer, tmp_path):
    """As in TransformerLens."""
    tokenizer.bos_token = tokenizer.pad_token = None
    random_model("mamba").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = HookedSSM.from_pretrained(tmp_path)
    assert model.tokenizer.pad_token_id == model.tokenizer.bos_token_id == 0
    assert model.to_tokens(["the cat", "sat"]).tolist() == [[0, 1, 2], [0, 3, 0]]


def test_it_is_saved_beside_the_weights(model, tmp_path):
    model.save_pretrained(tmp_path / "ours")
    again = HookedSSM.from_pretrained(tmp_path / "ours")
    assert torch.equal(again("the cat sat on"), model("the cat sat on"))


def test_tokens_are_those_of_transformer_lens(model):
    theirs = random_model("mamba")
    bridge = build_bridge_from_module(
        theirs, "MambaForCausalLM", hf_config=theirs.config, tokenizer=model.tokenizer
    )
    for prepend_bos in (None, True, False):
        for text in ("the cat", ["the cat sat on a mat", "a cat"]):
            wanted = bridge.to_tokens(text, prepend_bos=prepend_bos, padding_side="right")
            assert torch.equal(model.to_tokens(text, prepend_bos=prepend_bos), wanted)
        for text in ("a cat sat", ["the mat", "a cat sat ."]):
            wanted = bridge.to_str_tokens(text, prepend_bos=prepend_bos)
            assert model.to_str_tokens(text, prepend_bos=prepend_bos) == wanted
    tokens = torch.tensor([[1, 2, 7], [5, 6, 7]])
    assert model.to_string(tokens) == bridge.to_string(tokens)
    assert model.to_string(tokens[0]) == bridge.to_string(tokens[0]) == "the cat ."
    assert model.to_single_token("cat") == bridge.to_single_token("cat")


@pytest.mark.parametrize("name", ["mamba", "falcon_mamba", "mamba2", "gpt2", "gpt_neox"])
@torch.no_grad()
def test_padded_documents_have_the_logits_they_have_alone(name, tokenizer):
    """Whatever the tokenizer's own padding side is."""
    tokenizer.pad_token = tokenizer.eos_token
    model = HookedSSM.from_pretrained(random_model(name), tokenizer=tokenizer, default_prepend_bos=True)
    texts = ["the cat sat on a mat .", "a cat", "the mat sat"]
    model.tokenizer.padding_side = "left"
    tokens = model.to_tokens(texts)
    assert tokens.shape == (3, 8) and tokens[1].tolist() == [0, 5, 2, 0, 0, 0, 0, 0]
    logits = model(tokens)
    for row, text in enumerate(texts):
        alone = model(text)[0]
        torch.testing.assert_close(logits[row, : len(alone)], alone, rtol=1e-5, atol=1e-5)
