"""The indirect-object study on a small model with a small tokenizer: documents, every kind of patch against
the same patch by hand, files, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from rich.console import Console
from transformers import MambaConfig, MambaForCausalLM

from experiments.ioi import study as study_module
from experiments.ioi import sweeps
from experiments.ioi.averages import averages, held_by_name, with_other_name
from experiments.ioi.prompts import TEMPLATES, Prompts, Words, draw, roles, single_tokens
from experiments.ioi.stand_in import stand_in, word_tokenizer
from experiments.ioi.study import Study, main, run_study
from hooked_ssm import HookedSSM, zoo
from hooked_ssm.states import replace_states, set_states

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
SMALL = ["--patterns", "ABCAC", "--docs", "2", "--names", "3", "--averaged", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two steps of training: random, but a model that the study takes."""
    folder = tmp_path_factory.mktemp("stand-in")
    stand_in(folder, steps=2, batch_size=4, d_model=16, n_layers=2)
    return folder


@pytest.fixture(scope="module")
def model(folder) -> HookedSSM:
    model = HookedSSM.from_pretrained(folder, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data += 0.1 * torch.randn(p.shape, dtype=p.dtype, generator=generator)
    return model


@pytest.fixture(scope="module")
def words(model) -> Words:
    return Words.of(model, people=3)


def drawn(model, words, pattern="ABB", corruption="answer", docs=3, seed=0, **options) -> Prompts:
    generator = torch.Generator().manual_seed(seed)
    text = TEMPLATES[len(pattern)][0]
    return draw(model, words, text, pattern, docs, generator, corruption=corruption, **options)


def test_roles_follow_from_the_pattern():
    assert roles("ABB") == ["answer", "other", "other again"]
    assert roles("BAB") == ["other", "answer", "other again"]
    assert roles("ABCAC") == ["other 1", "answer", "other 2", "other 1 again", "other 2 again"]
    for pattern in ("AB", "AAA", "ABC", "ABBA", "AABB", "BBA", "ABCCD"):
        with pytest.raises(ValueError, match="a pattern has 3 or 5 letters|must be one that stands before"):
            roles(pattern)


@pytest.mark.parametrize("corruption", ["answer", "subject"])
@pytest.mark.parametrize("pattern", ["ABB", "BAB", "ABCAC", "ABCBA"])
def test_documents_have_their_names_where_the_pattern_says(model, words, pattern, corruption):
    prompts = drawn(model, words, pattern, corruption)
    names = list(prompts.places.values())
    assert list(prompts.places) == roles(pattern)
    for clean, corrupted, answer, other in zip(
        prompts.clean, prompts.corrupted, prompts.answer, prompts.other, strict=True
    ):
        in_place = clean[names].tolist()
        assert all(token in words.names.values() for token in in_place)
        letters = {token: pattern[i] for i, token in enumerate(in_place)}
        assert "".join(letters[token] for token in in_place) == pattern
        assert in_place.count(int(answer)) == 1
        changed = (clean != corrupted).nonzero().flatten().tolist()
        assert changed == [prompts.places[prompts.changed]]
        after = corrupted[names].tolist()
        assert after.count(int(other)) == 1 and answer != other
        assert int(answer) not in after if corruption == "answer" else after.count(int(answer)) == 2
    assert model.to_str_tokens(prompts.clean[0])[-1] == "to" and prompts.end == prompts.clean.shape[1] - 1
    again = drawn(model, words, pattern, corruption)
    assert torch.equal(again.clean, prompts.clean), "a seed gives the same documents"


def test_positions_are_called_after_the_names(model, words):
    prompts = drawn(model, words)
    tokens = model.to_str_tokens(prompts.clean[0])
    labels = {label: tokens[at] for label, at in prompts.labelled().items()}
    assert (
        labels["answer +1"] == "and" and labels["other +1"] == "went" and labels["other again +1"] == "gave"
    )
    assert "answer +2" not in labels, "that is the other name"
    assert labels["end"] == "to"


def test_words_of_more_than_one_token_are_left_out(model):
    kept, left_out = single_tokens(model, ["Mary", "Zebulon", "Mary John", "Tom", "Tom"], "names", 2)
    assert list(kept) == ["Mary", "Tom"] and left_out == ["Zebulon", "Mary John"]
    with pytest.raises(ValueError, match="at least 3 names .* of 3 the tokenizer has 2, not: Zebulon"):
        single_tokens(model, ["Mary", "Zebulon", "Tom"], "names", 3)


def test_a_tokenizer_that_splits_a_name_in_its_place_is_refused(model, words):
    split = replace(words, names={"Mary": 1, "Tom": 2, "Dan": 3})
    with pytest.raises(ValueError, match="does not make one token of every name"):
        drawn(model, split)


def by_hand(model, prompts, hooks, tokens=None) -> float:
    """Restored: hooks on the corrupted documents."""
    last = torch.full((len(prompts.clean),), prompts.end)

    def difference(tokens, hooks=()) -> float:
        with torch.no_grad():
            logits = model.run_with_hooks(tokens, fwd_hooks=list(hooks), logit_positions=last)
        rows = torch.arange(len(logits))
        return float((logits[rows, prompts.answer] - logits[rows, prompts.other]).mean())

    clean, corrupted = difference(prompts.clean), difference(prompts.corrupted)
    return (difference(prompts.corrupted, hooks) - corrupted) / (clean - corrupted)


def put(cache, name, *where):
    """A hook that puts the cached activation at one place into the run."""

    def edit(activation, hook):
        activation[(slice(None), *where)] = cache[name][(slice(None), *where)]
        return activation

    return name, edit


@pytest.mark.parametrize("corruption", ["answer", "subject"])
def test_streams_are_what_patching_by_hand_restores(model, words, corruption):
    prompts = drawn(model, words, corruption=corruption)
    table = sweeps.streams(model, [prompts]).set_index(["hook", "layer", "position"]).sort_index()
    _, cache = model.run_with_cache(prompts.clean)
    for (hook, layer, label), row in table.iterrows():
        at = prompts.labelled()[label]
        wanted = by_hand(model, prompts, [put(cache, f"blocks.{layer}.{hook}", at)])
        assert row.restored == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    first = table.loc["hook_resid_pre", 0]
    assert first.loc[prompts.changed, ["restored", "lost"]].tolist() == pytest.approx([1.0, 1.0])
    others = first.drop(index=prompts.changed)
    assert (others[["restored", "lost"]].abs() < 1e-12).all(axis=None), "documents differ in one token"


def test_taps_are_what_patching_by_hand_restores(model, words):
    prompts = drawn(model, words)
    table = sweeps.taps(model, [prompts]).set_index(["layer", "tap"])
    assert len(table) == 2 * 4
    _, cache = model.run_with_cache(prompts.clean)
    for (layer, tap), row in table.iterrows():
        at = prompts.places["answer"] + tap
        hook = put(cache, f"blocks.{layer}.mixer.hook_conv_taps", at, tap)
        assert row.restored == pytest.approx(by_hand(model, prompts, [hook]), rel=1e-9, abs=1e-9)
    # In the first layer the taps at these positions are all that differs.
    hooks = [
        put(cache, "blocks.0.mixer.hook_conv_taps", prompts.places["answer"] + tap, tap) for tap in range(4)
    ]
    hooks += [put(cache, "blocks.0.hook_resid_pre", prompts.places["answer"])]
    assert by_hand(model, prompts, hooks) == pytest.approx(1.0)


def test_states_are_what_replacing_them_restores(model, words):
    prompts = drawn(model, words)
    table = sweeps.states(model, [prompts]).set_index(["layer", "position"])
    _, cache = model.run_with_cache(prompts.clean)
    for (layer, label), row in table.iterrows():
        hooks = replace_states(model, cache, positions=prompts.labelled()[label], layers=[layer])
        assert row.restored == pytest.approx(by_hand(model, prompts, hooks), rel=1e-9, abs=1e-9)


def test_groups_are_put_together_by_documents(model, words):
    one, two = drawn(model, words, docs=2), drawn(model, words, "BAB", docs=2, seed=1)
    table = sweeps.streams(model, [one, two]).set_index(["hook", "layer", "position"])
    differences = {
        id(each): [sweeps.logit_difference(model, each, tokens) for tokens in (each.clean, each.corrupted)]
        for each in (one, two)
    }
    gaps = [float((clean - corrupted).sum()) for clean, corrupted in differences.values()]
    alone = [sweeps.streams(model, [each]).set_index(["hook", "layer", "position"]) for each in (one, two)]
    key = ("hook_mixer_out", 0, "end")
    wanted = sum(gap * each.restored[key] for gap, each in zip(gaps, alone, strict=True)) / sum(gaps)
    assert table.restored[key] == pytest.approx(wanted) and table.docs[key] == 4
    assert table.docs["hook_mixer_out", 0, "answer +2"] == 2, "in ABB that is the other name"


def test_means_and_their_edit_are_what_they_say(model, words):
    prompts = drawn(model, words, docs=4, answers=["Mary", "John"])
    means = {(layer, after): {} for layer in (0, 1) for after in (0, 1)}
    for name in ("Mary", "John"):
        held_by_name(model, prompts, words.names[name], means)
    at = prompts.places["answer"]
    for (layer, after), by_name in means.items():
        for token, mean in by_name.items():
            states = []
            for tokens in (*prompts.clean, *prompts.corrupted):
                if tokens[at] == token:
                    _, cache = model.run_with_cache(tokens[None])
                    states.append(cache[f"blocks.{layer}.mixer.hook_ssm_state"][0, at + after])
            assert len(states) == 4
            torch.testing.assert_close(mean, torch.stack(states).mean(0), **CLOSE)
    edited = with_other_name(model, prompts, 1, at + 1, means[1, 1])
    _, cache = model.run_with_cache(prompts.clean)
    state = cache["blocks.1.mixer.hook_ssm_state"][:, [at + 1]]
    for doc in range(4):
        change = means[1, 1][int(prompts.other[doc])] - means[1, 1][int(prompts.answer[doc])]
        hooks = set_states(model, state[doc : doc + 1] + change, positions=at + 1, layers=[1])
        with torch.no_grad():
            logits = model.run_with_hooks(prompts.clean[doc : doc + 1], fwd_hooks=hooks)[0, -1]
        wanted = logits[prompts.answer[doc]] - logits[prompts.other[doc]]
        torch.testing.assert_close(edited[doc], wanted, **CLOSE)


def test_a_state_past_the_convolutions_reach_is_the_name_whole(words):
    """One layer, and documents that differ in the answer alone: three tokens after the name the state is all
    that later positions know of it, so that one name's mean in place of another's is the other document."""
    model = HookedSSM.from_pretrained(one_layer(), dtype=torch.float64, tokenizer=word_tokenizer())
    few = Words(
        dict(list(words.names.items())[:3]),
        dict(list(words.places.items())[:1]),
        dict(list(words.objects.items())[:1]),
        (),
    )
    asked = [(TEMPLATES[3][0], "ABB")]
    table = averages(model, few, asked, docs=3, names=2, averaged=2, offsets=(0, 1, 3)).set_index("after")
    assert table.moved[3] == pytest.approx(1.0, abs=1e-9)
    assert abs(table.moved[0] - 1) > 1e-3 and abs(table.moved[1] - 1) > 1e-3
    with pytest.raises(ValueError, match="names to average must be from 2 to the 3 there are, got 9"):
        averages(model, few, asked, docs=1, names=9, averaged=1)


def one_layer():
    """A live Mamba of one layer, far from its initial weights."""
    torch.manual_seed(0)
    config = MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=len(word_tokenizer()), state_size=4)
    theirs = MambaForCausalLM(config)
    for p in theirs.parameters():
        p.data += 0.2 * torch.randn_like(p)
    return theirs


@pytest.fixture(scope="module")
def studied(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    main([str(folder), "--out", str(out), *SMALL, "--threads", "1"])
    return out


def test_the_study_writes_tables_pictures_and_one_page(studied, folder):
    tables = {path.stem: pd.read_csv(path) for path in studied.glob("*.csv")}
    assert sorted(tables) == ["averages", "behaviour", "states", "streams", "taps"]
    assert list(tables["behaviour"].docs) == [2, 2, 4]
    assert len(tables["taps"]) == 2 * 4 and len(tables["averages"]) == 2 * 4
    for table in tables.values():
        numbers = table.select_dtypes("number")
        assert numbers.notna().all(axis=None) and len(numbers.columns) >= 3
    pictures = sorted(path.stem for path in studied.glob("*.png"))
    assert pictures == [
        *("averages-moved", "averages-switched", "states", "streams-hook_mixer_out"),
        *("streams-hook_resid_pre", "taps-lost", "taps-restored"),
    ]
    page = (studied / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(pictures)
    assert "http" not in page and "<script" not in page
    assert str(folder) in page and "<b title=" in page
    last = tables["streams"].iloc[-1]
    assert f"<td>{last.restored:.3f}</td>" in page.replace("-0.000", "0.000")
    assert not list(studied.glob(".*")), "nothing half written is left"


def test_a_study_that_was_cut_off_goes_on(folder, tmp_path, monkeypatch, capsys):
    def cut(*_):
        raise KeyboardInterrupt

    arguments = [str(folder), "--out", str(tmp_path), *SMALL]
    with monkeypatch.context() as patched:
        patched.setattr(study_module.sweeps, "taps", cut)
        with pytest.raises(KeyboardInterrupt):
            main(arguments)
    made = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.csv")}
    assert sorted(made) == ["behaviour.csv", "streams.csv"] and not (tmp_path / "report.html").exists()
    main(arguments)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in made} == made
    assert (tmp_path / "report.html").exists()
    with pytest.raises(SystemExit):
        main([*arguments, "--seed", "1"])
    assert "holds another study" in capsys.readouterr().err


def test_a_model_without_states_is_studied_as_far_as_it_goes(tmp_path):
    tokenizer = word_tokenizer()
    cfg = zoo.attention(d_model=8, d_vocab=len(tokenizer), n_layers=1, rotary_dim=4, seed=0)
    study = Study(model="attention", patterns=("ABCAC",), corruption="subject", docs=2)
    page = run_study(HookedSSM(cfg, tokenizer), study, tmp_path, Console(quiet=True))
    assert sorted(path.stem for path in tmp_path.glob("*.csv")) == ["behaviour", "streams"]
    assert "the last name becomes the answer" in " ".join(page.read_text().split())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patterns": ("ABC",)}, "a pattern has 3 or 5 letters"),
        ({"patterns": ("ABB", "ABCAC")}, "patterns must have one number of names"),
        ({"patterns": ()}, "patterns must have one number of names"),
        ({"corruption": "all"}, "corruption must be one of"),
        ({"docs": 0}, "docs must be at least 1, got 0"),
        ({"averaged": 0}, "averaged must be at least 1, got 0"),
        ({"names": 1}, "names must be at least 2, got 1"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Study(**{"model": "m", **change})


class Code:
    """Runs when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("case", ["no folder", "no tokenizer", "threads", "config", "pickle", "truncated"])
def test_the_command_line_says_in_one_line_what_is_wrong(case, folder, tmp_path, capsys):
    arguments = [str(folder), "--out", str(tmp_path / "out")]
    if case == "no folder":
        arguments[0] = str(tmp_path / "nothing")
        wanted = "is neither a folder nor a model on the Hugging Face Hub"
    elif case == "no tokenizer":
        HookedSSM.from_pretrained(folder).save(tmp_path / "bare")
        arguments[0], wanted = str(tmp_path / "bare"), "has no tokenizer beside its weights"
    elif case == "threads":
        arguments, wanted = [*arguments, "--threads", "0"], "threads must be at least 1, got 0"
    elif case in ("pickle", "truncated"):
        one_layer().save_pretrained(tmp_path / "broken")
        arguments[0], weights = str(tmp_path / "broken"), tmp_path / "broken" / "model.safetensors"
        if case == "truncated":
            weights.write_bytes(weights.read_bytes()[:999])
            wanted = "model.safetensors is not a whole safetensors file"
        else:
            weights.unlink()
            torch.save({"a": Code(tmp_path / "it ran")}, tmp_path / "broken" / "pytorch_model.bin")
            wanted = "holds more than tensors; nothing in it was run"
    else:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "study.json").write_text(json.dumps({})[:1])
        wanted = "study.json is not JSON"
    capsys.readouterr()  # what writing the checkpoint printed
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    printed = capsys.readouterr().err
    assert stopped.value.code == 2 and printed.count("\n") == 1 and wanted in printed
    assert not (tmp_path / "it ran").exists()
