"""Documents of indirect object identification (Wang et al. 2022, arXiv:2211.00593), clean and corrupted.

A pattern says which name stands where: "ABB" is "When A and B went to the shop, B gave a ring to", and the
answer is the name that stands once, A. Five letters are for three people, as "ABCAC" (the answer is B).

A corruption changes one name, and with it the answer:

    answer    the answer's only mention becomes a name that is not in the document
    subject   the last mention becomes the answer, and whoever stood there is the answer now

All words that vary are one token each, so documents of one template have all their names at the same places.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

NAMES = (
    "Mary John Tom James Dan Sarah Martin Amy Laura Mark Paul David Michael Robert William Richard Thomas "
    "Charles Christopher Daniel Matthew Anthony Andrew Kevin Brian George Edward Peter Alex Emily Jessica "
    "Anna Emma Kate Lisa Susan Karen Nancy Helen Maria Rachel Alice Jane Julia Grace Rose Henry Jack Adam "
    "Simon Steven Eric Scott Frank Ryan Jason Justin Patrick Samuel Joseph"
).split()
PLACES = "store park school garden restaurant office house hospital station library".split()
OBJECTS = "ring drink book bone computer basketball snack necklace letter key".split()
# Of the number of names in them.
TEMPLATES = {
    3: (
        "When {0} and {1} went to the {place}, {2} gave a {object} to",
        "Then, {0} and {1} were working at the {place}. {2} decided to give a {object} to",
        "After {0} and {1} had a lot of fun at the {place}, {2} handed a {object} to",
    ),
    5: (
        "Then, {0}, {1} and {2} went to the {place}. {3} and {4} gave a {object} to",
        "When {0}, {1} and {2} were at the {place}, {3} and {4} decided to give a {object} to",
    ),
}
CORRUPTIONS = ("answer", "subject")


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Documents of one template and pattern.

    answer, other: the token that is right for the clean and for the corrupted document.
    places: the position of every name by its role: "answer" (its only mention), "other 1" for the first name
        that is mentioned twice, "other 1 again" for its second mention, and so on.
    changed: the role that the corruption changes.
    """

    pattern: str
    text: str
    clean: Int[Tensor, "doc pos"]
    corrupted: Int[Tensor, "doc pos"]
    answer: Int[Tensor, " doc"]
    other: Int[Tensor, " doc"]
    places: dict[str, int]
    changed: str

    @property
    def end(self) -> int:
        """The position that predicts the answer."""
        return self.clean.shape[1] - 1

    def labelled(self) -> dict[str, int]:
        """Named positions: names, up to two tokens after each (unless that is a name too), and the end."""
        found = dict(self.places)
        for after in (1, 2):
            for role, place in self.places.items():
                if place + after not in found.values() and place + after <= self.end:
                    found[f"{role} +{after}"] = place + after
        if self.end not in found.values():
            found["end"] = self.end
        return dict(sorted(found.items(), key=lambda item: item[1]))


def roles(pattern: str) -> list[str]:
    """The role of each name of the pattern. Raises ValueError unless all names but one stand twice."""
    letters = list(dict.fromkeys(pattern))
    once = [letter for letter in letters if pattern.count(letter) == 1]
    twice = [letter for letter in letters if pattern.count(letter) == 2]
    if len(pattern) not in TEMPLATES or len(once) != 1 or len(once) + len(twice) != len(letters):
        raise ValueError(
            f"a pattern has {' or '.join(map(str, TEMPLATES))} letters, one of them once and all others "
            f"twice, as in 'ABB' and 'ABCAC'; got {pattern!r}."
        )
    if pattern[-1] == once[0]:
        raise ValueError(f"the last name of a pattern must be one that stands before, got {pattern!r}.")
    names = {letter: "other" if len(twice) == 1 else f"other {i + 1}" for i, letter in enumerate(twice)}
    found = []
    for place, letter in enumerate(pattern):
        again = " again" if letter in pattern[:place] else ""
        found.append("answer" if letter == once[0] else names[letter] + again)
    return found


def single_tokens(
    model: Any, words: Sequence[str], what: str, least: int
) -> tuple[dict[str, int], list[str]]:
    """The words that are one token of the tokenizer, with a space before them, and those that are not.

    An unknown word's token is none. Raises ValueError if there are fewer than `least`.
    """
    found: dict[str, int] = {}
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    for word in words:
        tokens = model.to_tokens(f" {word}", prepend_bos=False)[0].tolist()
        if len(tokens) == 1 and tokens[0] != unknown and tokens[0] not in found.values():
            found[word] = tokens[0]
    left_out = [word for word in words if word not in found]
    if len(found) < least:
        raise ValueError(
            f"the study needs at least {least} {what} that are one token each; of {len(words)} the "
            f"tokenizer has {len(found)}, not: {', '.join(left_out)}."
        )
    return found, left_out


@dataclass(frozen=True)
class Words:
    """What documents are made of: words of one token, with their tokens."""

    names: dict[str, int]
    places: dict[str, int]
    objects: dict[str, int]
    left_out: tuple[str, ...]

    @classmethod
    def of(cls, model: Any, people: int) -> "Words":
        """Those of the model's tokenizer, enough for documents of so many people and one more."""
        found, left_out = {}, []
        for what, words, least in (
            ("names", NAMES, people + 1),
            ("places", PLACES, 1),
            ("objects", OBJECTS, 1),
        ):
            found[what], missing = single_tokens(model, words, what, least)
            left_out += missing
        return cls(found["names"], found["places"], found["objects"], tuple(left_out))


def draw(
    model: Any,
    words: Words,
    template: str,
    pattern: str,
    docs: int,
    generator: torch.Generator,
    *,
    corruption: str = "answer",
    answers: Sequence[str] | None = None,
) -> Prompts:
    """Random documents. `answers`: names that the answer, and what it is corrupted to, are drawn from.

    Raises ValueError if the tokenizer does not make one token of every name where it stands.
    """
    if corruption not in CORRUPTIONS:
        raise ValueError(f"corruption must be one of {CORRUPTIONS}, got {corruption!r}.")
    named, letters = roles(pattern), list(dict.fromkeys(pattern))
    right = pattern[named.index("answer")]
    place = named.index("answer") if corruption == "answer" else len(pattern) - 1
    texts: dict[str, list[str]] = {"clean": [], "corrupted": []}
    cast_of_each: list[dict[str, str]] = []
    text, starts = "", list[int]()
    for _ in range(docs):
        who = cast(words, letters, right, answers, generator)
        slots = [who[letter] for letter in pattern]
        about = {"place": pick(words.places, generator), "object": pick(words.objects, generator)}
        text, starts = written(template, slots, about)
        slots[place] = who["fresh" if corruption == "answer" else right]
        texts["clean"].append(text)
        texts["corrupted"].append(written(template, slots, about)[0])
        cast_of_each.append(who)

    def tokens_of(letters: list[str]) -> Int[Tensor, "doc letter"]:
        rows = [[words.names[who[letter]] for letter in letters] for who in cast_of_each]
        return torch.tensor(rows, device=clean.device)

    clean, corrupted = (model.to_tokens(each) for each in texts.values())
    places = [model.to_tokens(text[:start].rstrip()).shape[1] for start in starts]  # of the last document
    prompts = Prompts(
        pattern=pattern,
        text=text,
        clean=clean,
        corrupted=corrupted,
        answer=tokens_of([right])[:, 0],
        other=tokens_of(["fresh" if corruption == "answer" else pattern[-1]])[:, 0],
        places=dict(zip(named, places, strict=True)),
        changed=named[place],
    )
    check(prompts, tokens_of(list(pattern)))
    return prompts


def cast(
    words: Words,
    letters: list[str],
    right: str,
    answers: Sequence[str] | None,
    generator: torch.Generator,
) -> dict[str, str]:
    """A name for every letter, and a "fresh" one that is in none."""
    wanted = list(words.names)
    given = list(answers) if answers is not None else wanted
    order = torch.randperm(len(given), generator=generator).tolist()
    who = {right: given[order[0]], "fresh": given[order[1]]}
    rest = [name for name in wanted if name not in who.values()]
    for letter, place in zip(
        (each for each in letters if each != right),
        torch.randperm(len(rest), generator=generator).tolist(),
        strict=False,
    ):
        who[letter] = rest[place]
    return who


def pick(words: dict[str, int], generator: torch.Generator) -> str:
    return list(words)[int(torch.randint(len(words), (1,), generator=generator))]


def written(template: str, slots: Sequence[str], about: dict[str, str]) -> tuple[str, list[int]]:
    """The text, and where in it each name begins."""
    text, starts = "", []
    for before, field, _, _ in Formatter().parse(template):
        text += before
        if field and field.isdigit():
            starts.append(len(text))
            text += slots[int(field)]
        elif field:
            text += about[field]
    return text, starts


def check(prompts: Prompts, names: Int[Tensor, "doc name"]) -> None:
    """Raise ValueError unless names are where they should be, and documents differ in one of them alone."""
    clean, corrupted = prompts.clean, prompts.corrupted
    as_wanted = (
        clean.shape == corrupted.shape
        and torch.equal(clean[:, list(prompts.places.values())], names)
        and bool((clean[:, -1] == clean[0, -1]).all())  # all end at one position
    )
    if as_wanted:
        differ = torch.zeros_like(clean, dtype=torch.bool)
        differ[:, prompts.places[prompts.changed]] = True
        as_wanted = torch.equal(clean != corrupted, differ)
    if not as_wanted:
        raise ValueError(
            f"the tokenizer does not make one token of every name in {prompts.text!r}, so that names "
            "cannot be placed."
        )
