"""A document as coloured text in a terminal."""

from collections.abc import Callable

from rich.text import Text

from tasks.documents import Documents

STYLES = {  # the first that applies to a position colours it
    "key": "bold dark_orange",
    "value": "bold dodger_blue1",
    "query": "bold dark_orange",
    "target_item": "bold dodger_blue1",
    "divider": "dim",
}


def coloured(docs: Documents, number: int = 0, name: Callable[[int], str] = str) -> Text:
    """Document `number` up to its answer: key and query orange, value and answer blue, copies underlined.

    name: how a token is shown, such as `AssociativeTreecall.token_name`. A copy is another token that
    equals the query. `rich.print` shows the result.
    """
    if not 0 <= number < len(docs):
        raise IndexError(f"document {number} of {len(docs)} was asked for.")
    where = {place: int(docs.positions[place][number]) for place in STYLES}
    styles = {position: STYLES[place] for place, position in reversed(where.items())}
    tokens = docs.tokens[number, : where["target_item"] + 1].tolist()
    text = Text()
    for position, token in enumerate(tokens):
        copy = "underline dark_orange" if token == tokens[where["query"]] else ""
        text.append(name(token), styles.get(position, copy or ("dim" if position == 0 else "")))
        text.append(" ")
    text.rstrip()
    return text
