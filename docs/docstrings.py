"""The project's docstrings as reStructuredText.

They are written to be read in a terminal: equations are indented, `names` are in single backticks, and
options are paragraphs "name: what it is", whose further lines are indented.
"""

import re

OPTION = re.compile(
    r"^(`?\*{0,2}[A-Za-z_][\w.]*\*?`?(?:(?:, | and )`?[A-Za-z_][\w.]*\*?`?)*(?: \[[^\]]*\])?): (.+)$"
)
ITEM = re.compile(r"^(?:- |\d+\. )")
SPECIAL = re.compile(r"([*|\\]|_(?=\W|$))")


def to_rst(lines: list[str]) -> list[str]:
    """The lines of one docstring, for Sphinx."""
    out: list[str] = []
    for paragraph in paragraphs(lines):
        if all(line.startswith("  ") for line in paragraph):
            out += ["::", "", *(f"    {line}" for line in paragraph), ""]
        elif all(OPTION.match(line) or line.startswith("  ") for line in paragraph):
            for name, text in options(paragraph):
                out += [f"{literal(name)}", f"    {inline(text)}", ""]
        elif ITEM.match(paragraph[0]):
            for item in items(paragraph):
                out += [inline(item)]
            out += [""]
        else:
            out += [inline(" ".join(line.strip() for line in paragraph)), ""]
    return out


def paragraphs(lines: list[str]) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            found[-1].append(line.rstrip())
        elif found[-1]:
            found.append([])
    return [paragraph for paragraph in found if paragraph]


def options(paragraph: list[str]) -> list[tuple[str, str]]:
    """(name, what it is) of each option."""
    found: list[tuple[str, str]] = []
    for line in paragraph:
        match = None if line.startswith("  ") else OPTION.match(line)
        if match:
            found.append((match[1], match[2]))
        else:
            name, text = found[-1]
            found[-1] = name, f"{text} {line.strip()}"
    return found


def items(paragraph: list[str]) -> list[str]:
    """The items of a list, one line each."""
    found: list[str] = []
    for line in paragraph:
        if ITEM.match(line):
            found.append(line)
        else:
            found[-1] += f" {line.strip()}"
    return found


def inline(text: str) -> str:
    """Single backticks are code; no other mark means anything."""
    parts = re.split(r"`+([^`]+)`+", text)
    return "".join(
        f"``{part.strip()}``" if number % 2 else SPECIAL.sub(r"\\\1", part)
        for number, part in enumerate(parts)
    )


def literal(name: str) -> str:
    return ", ".join(f"``{each.strip('` ')}``" for each in name.split(", "))
