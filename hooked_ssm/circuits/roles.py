"""Named positions: what a document's positions are to its question, wherever they stand."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

ELSEWHERE = "elsewhere"
DEFAULT = ("key", "value", "value+1", "value+2", "query")
ROLE = re.compile(r"(?P<name>\w+?)(?P<offset>[+-]\d+)?")


def default_roles(positions: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Those of `DEFAULT` whose named positions these documents have."""
    return tuple(role for role in DEFAULT if role.partition("+")[0] in positions)


def role_map(
    roles: Sequence[str], positions: Mapping[str, Int[Tensor, " doc"]], shape: tuple[int, int]
) -> Int[Tensor, "doc pos"]:
    """The number of every position's role; len(roles) is `ELSEWHERE`.

    roles: names of positions, with an offset where that is wanted ("value+1"), or numbers ("3": position 3 of
        every document). A position has one role: where two fall together, the one without an offset, then
        the one named first.

    Raises ValueError for roles that no document has, that are named twice or that cannot be read.
    """
    docs, length = shape
    repeated = [role for role in dict.fromkeys(roles) if list(roles).count(role) > 1]
    if repeated or not roles or ELSEWHERE in roles:
        raise ValueError(
            f"roles must be different names, {ELSEWHERE!r} (all other positions) not among them, "
            f"got {list(roles)}."
        )
    found = torch.full((docs, length), len(roles))
    at = torch.arange(length)
    parsed = [(number, *parse(role, positions)) for number, role in enumerate(roles)]
    for number, where, offset in sorted(parsed, key=lambda each: (each[2] != 0, each[0])):
        here = (at == where[:, None] + offset) & (found == len(roles))
        if not here.any():
            raise ValueError(
                f"no document has a position {roles[number]!r} (of its own) within its {length} tokens."
            )
        found[here] = number
    return found


def parse(role: str, positions: Mapping[str, Any]) -> tuple[Tensor, int]:
    """The position in every document, and the offset from it."""
    match = ROLE.fullmatch(role)
    name = match["name"] if match else role
    if name.isdecimal() and match and not match["offset"]:
        return torch.tensor([int(name)]), 0
    if match is None or name not in positions:
        raise ValueError(
            f"a role is one of {', '.join(positions)}, with an offset if wanted ('value+1'), or the number "
            f"of a position; got {role!r}."
        )
    return positions[name].cpu(), int(match["offset"] or 0)
