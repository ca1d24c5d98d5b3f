"""Text in and out, with a tokenizer small enough to read."""

import pytest
import torch

from hooked_ssm import HookedSSM, zoo


class Letters:
    """Tokens are letters: a 2, b 3, ...; 0 begins a document and 1 pads it."""

    def __init__(self, bos: int | None = 0, pad: int | None = 1):
        self.bos_token_id, self.pad_token_id = bos, pad

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [ord(letter) - ord("a") + 2 for letter in text]}

    def decode(self, tokens: list[int], clean_up_tokenization_spaces: bool) -> str:
        assert not clean_up_tokenization_spaces
        return "".join("^_abcdefgh"[token] for token in tokens)


@pytest.fixture
def model() -> HookedSSM:
    return HookedSSM(zoo.mamba(d_model=8, d_vocab=10, n_ctx=6, device="cpu", seed=0), tokenizer=Letters())


def test_text_becomes_tokens(model):
    assert model.to_tokens("abc").tolist() == [[0, 2, 3, 4]]
    assert model.to_tokens("abc", prepend_bos=False).tolist() == [[2, 3, 4]]
    assert model.to_tokens(["abc", "d"]).tolist() == [[0, 2, 3, 4], [0, 5, 1, 1]]
    assert model.to_tokens("abcdefgh").tolist() == [[0, 2, 3, 4, 5, 6]], "cut at n_ctx"
    assert model.to_tokens("abcdefgh", truncate=False).shape == (1, 9)
    assert model.to_tokens("abc").dtype == torch.long


def test_whether_a_document_begins_with_bos_is_a_setting(model):
    model.cfg.default_prepend_bos = False
    assert model.to_tokens("abc").tolist() == [[2, 3, 4]]
    assert model.to_tokens("abc", prepend_bos=True).tolist() == [[0, 2, 3, 4]]
    model.tokenizer = Letters(bos=None)
    assert model.to_tokens("abc", prepend_bos=True).tolist() == [[2, 3, 4]]


def test_tokens_stay_as_they_are(model):
    tokens = torch.tensor([[3, 4]])
    assert model.to_tokens(tokens) is tokens
    assert torch.equal(model.to_tokens(tokens[0]), tokens)


def test_tokens_become_text(model):
    assert model.to_string(torch.tensor([2, 3])) == "ab"
    assert model.to_string([2, 3]) == "ab"
    assert model.to_string(torch.tensor([[2, 3], [4, 1]])) == ["ab", "c_"]
    assert model.to_str_tokens("abc") == ["^", "a", "b", "c"]
    assert model.to_str_tokens(torch.tensor([3, 4])) == ["b", "c"]
    assert model.to_str_tokens(["abc", torch.tensor([3, 4])]) == [["^", "a", "b", "c"], ["b", "c"]]
    assert model.to_single_token("c") == 4


def test_models_run_on_text(model):
    tokens = torch.tensor([[0, 2, 3], [0, 4, 5]])
    assert torch.equal(model(["ab", "cd"]), model(tokens))
    assert torch.equal(model("ab", return_type="loss"), model(tokens[:1], return_type="loss"))


def test_a_text_is_continued_as_text(model):
    tokens = model.generate(model.to_tokens("ab"), 2)
    assert model.generate("ab", 2) == model.to_string(tokens[0])
    assert model.generate("ab", 2).startswith("^ab") and len(model.generate("ab", 2)) == 5
    assert model.generate(["ab", "cd"], 2) == model.to_string(
        model.generate(model.to_tokens(["ab", "cd"]), 2)
    )


def test_texts_of_different_lengths_are_continued_as_each_would_be_alone(model):
    texts = ["abcd", "b", "dcba", "ab"]
    assert model.generate(texts, 4) == [model.generate(text, 4) for text in texts]
    drawn = model.generate(texts, 3, temperature=2.0, generator=torch.Generator().manual_seed(0))
    assert [text[: len(before) + 1] for text, before in zip(drawn, texts)] == [f"^{text}" for text in texts]


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (lambda m: m.to_tokens([]), ValueError, "at least one text, got an empty list"),
        (lambda m: m.to_tokens(3), TypeError, "a text or a list of texts, got int"),
        (lambda m: m.to_tokens("a", padding_side="left"), ValueError, "on the right, .* padding_side='left'"),
        (lambda m: m.to_tokens(["a", 3]), TypeError, "a text or a list of texts, got list"),
        (lambda m: m.to_single_token(""), ValueError, "'' is 0 tokens"),
        (lambda m: m.to_single_token("ab"), ValueError, r"'ab' is 2 tokens \(\[2, 3\]\), not one"),
        (
            lambda m: m.to_str_tokens(torch.zeros(2, 3).long()),
            ValueError,
            "takes one document or a .*, got 2",
        ),
        (lambda m: m.generate([]), ValueError, "at least one text, got an empty list"),
    ],
)
def test_what_cannot_be_turned_into_tokens_is_refused(model, run, error, message):
    with pytest.raises(error, match=message):
        run(model)


def test_texts_of_different_lengths_need_padding(model):
    model.tokenizer = Letters(pad=None)
    assert model.to_tokens(["ab", "cd"]).shape == (2, 3)
    with pytest.raises(ValueError, match="need a tokenizer with a pad token"):
        model.to_tokens(["ab", "c"])


def test_an_empty_document_is_refused(model):
    model.cfg.default_prepend_bos = False
    assert model.to_tokens("").shape == (1, 0)
    with pytest.raises(ValueError, match=r"at least one of each, got shape \[1, 0\]"):
        model("")


def test_text_needs_a_tokenizer(model):
    model.tokenizer = None
    ways = [
        lambda: model.to_tokens("a"),
        lambda: model.to_string([2]),
        lambda: model.to_str_tokens(torch.tensor([2])),
        lambda: model.to_single_token("a"),
        lambda: model("a"),
        lambda: model.generate("a"),
    ]
    for way in ways:
        with pytest.raises(
            ValueError, match="this model has no tokenizer: give it tokens, or set model.tokenizer"
        ):
            way()
