"""Pictures show the document they are given, and are written whole."""

from xml.etree import ElementTree

import pytest
from matplotlib.colors import to_rgba

from tasks import AssociativeRecall, AssociativeTreecall, Grammar
from tasks.coloured import coloured
from tasks.drawing import KEY, VALUE, draw_document, draw_grammar, path_between

TASK = AssociativeTreecall(queries="parent+sibling", grammar_seed=3)


def texts(figure):
    return [text for text in figure.axes[0].texts if text.get_text()]


def colour_of(text):
    return text.get_bbox_patch().get_facecolor() if text.get_bbox_patch() else None


def test_all_tokens_are_shown_with_key_and_value_in_colour():
    docs = TASK.sample(3, 0)
    for b in range(3):
        figure = draw_document(TASK, docs, b)
        where = {name: int(place[b]) for name, place in docs.positions.items()}
        row = {round(t.get_position()[0]): t for t in texts(figure) if t.get_position()[1] == 0}
        names = [row[place].get_text() for place in range(len(row))]
        assert names == [TASK.token_name(t) for t in docs.tokens[b].tolist()[: where["target_item"] + 2]]
        tree = [t for t in texts(figure) if t.get_position()[1] >= 1]
        assert sorted(t.get_text() for t in tree) == sorted(names[1 : where["divider"]])
        strong = (to_rgba(KEY), to_rgba(VALUE))
        assert {place for place, t in row.items() if colour_of(t) in strong} == {
            where[name] for name in ("key", "value", "query", "target_item")
        }


def test_the_way_from_key_to_value_goes_through_the_tree():
    parent = [-1, 3, 3, 6, 5, 6, -1]
    assert path_between(1, 3, parent) == [1, 3]
    assert path_between(6, 2, parent) == [6, 3, 2]
    assert path_between(1, 2, parent) == [1, 3, 2]
    assert path_between(4, 1, parent) == [4, 5, 6, 3, 1]
    assert path_between(6, 6, parent) == [6]


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_pictures_are_written_in_the_format_of_their_name(suffix, tmp_path):
    path = tmp_path / f"tree{suffix}"
    draw_document(TASK, TASK.sample(1, 0)).save(path)
    start = {".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(start) and list(tmp_path.iterdir()) == [path]
    if suffix == ".svg":
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
        again = tmp_path / "again.svg"
        draw_document(TASK, TASK.sample(1, 0)).save(again)
        assert again.read_bytes() == path.read_bytes()


def test_a_grammar_is_drawn_with_all_its_nonterminals():
    grammar = Grammar.draw(0)
    figure = draw_grammar(grammar)
    shown = {text.get_text() for text in texts(figure)}
    assert {f"N{x}" for x in range(40)} <= shown and "level 10" in shown
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_document_is_shown_as_coloured_text():
    docs = TASK.sample(5, 0)
    for b in range(5):
        text = coloured(docs, b, TASK.token_name)
        stop = int(docs.positions["target_item"][b]) + 1
        names = [TASK.token_name(token) for token in docs.tokens[b, :stop].tolist()]
        assert text.plain == " ".join(names)
        styled = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
        key, value = (names[int(docs.positions[name][b])] for name in ("key", "value"))
        assert "dark_orange" in styled[key] and "dodger_blue1" in styled[value]


def test_documents_of_other_tasks_are_shown_too():
    docs = AssociativeRecall(n_keys=9, n_values=9, n_pairs=2).sample(1, 0)
    assert coloured(docs).plain == " ".join(map(str, docs.tokens[0, :-1].tolist()))


def test_what_cannot_be_drawn_is_refused(tmp_path):
    docs = TASK.sample(2, 0)
    with pytest.raises(IndexError, match="document 2 of 2 was asked for"):
        draw_document(TASK, docs, 2)
    with pytest.raises(IndexError, match="document -1 of 2 was asked for"):
        coloured(docs, -1)
    with pytest.raises(ValueError, match=r"written as .svg, .png or .pdf, got 'tree.gif'"):
        draw_document(TASK, docs).save(tmp_path / "tree.gif")
