"""Random probabilistic grammars, whose sentences are trees of words.

    X -> s1 .. sk    k >= 1 symbols, each a terminal or a nonterminal of a higher level than X's

To expand X, draw one of its rules, and one terminal from X's distribution over all of them: the head. The
head is said at one edge of what the rule's symbols give. It is the parent of the rule's terminals and of the
heads of the rule's nonterminals, so that the words of a sentence form a tree, each constituent of it one
stretch of the sentence. The start symbol is uniform over the nonterminals. Levels make every sentence end.

Symbols are numbers: the terminals 0 .. n_terminals - 1, then the nonterminals. Probabilities are multiples of
2^-53, so that sums of them are exact.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from tasks.categorical import MAX_ROWS, Categorical
from tasks.random_grammar import draw_grammar
from tasks.writing import write_atomically


@dataclass(frozen=True)
class Rule:
    """One right-hand side, and the probability that its nonterminal is expanded by it."""

    probability: float
    symbols: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Grammar:
    """levels and rules of each nonterminal, and its distribution over heads.

    ValueError unless probabilities sum to 1 and every rule leads to higher levels.
    """

    levels: tuple[int, ...]
    rules: tuple[tuple[Rule, ...], ...]
    heads: Float[np.ndarray, "nonterminal terminal"]

    def __post_init__(self):
        n = self.n_nonterminals
        if not 1 <= n <= MAX_ROWS or len(self.rules) != n or self.heads.shape[0] != n:
            raise ValueError(
                f"a grammar needs 1 to {MAX_ROWS} nonterminals, with rules and heads for each: got {n} "
                f"levels, rules for {len(self.rules)} and heads for {self.heads.shape[0]}."
            )
        if self.n_terminals < 1:
            raise ValueError("a grammar needs at least 1 terminal, got 0: no head can be drawn.")
        for x, rules in enumerate(self.rules):
            name = self.name(self.n_terminals + x)
            check_distribution(f"the rules of {name}", np.array([rule.probability for rule in rules]))
            check_distribution(f"the heads of {name}", self.heads[x])
            for rule in rules:
                self._check_symbols(name, x, rule)
        self.heads.flags.writeable = False

    def _check_symbols(self, name: str, x: int, rule: Rule) -> None:
        if not rule.symbols:
            raise ValueError(f"a rule of {name} has no symbols; at least 1 is wanted.")
        for symbol in rule.symbols:
            if not 0 <= symbol < self.n_terminals + self.n_nonterminals:
                raise ValueError(
                    f"a rule of {name} has symbol {symbol}; symbols are "
                    f"0 .. {self.n_terminals + self.n_nonterminals - 1}."
                )
            child = symbol - self.n_terminals
            if child >= 0 and self.levels[child] <= self.levels[x]:
                raise ValueError(
                    f"a rule of {name}, of level {self.levels[x]}, has {self.name(symbol)}, of level "
                    f"{self.levels[child]}; only higher levels make every sentence end."
                )

    @classmethod
    def draw(
        cls,
        seed: int,
        *,
        n_terminals: int = 20,
        n_nonterminals: int = 40,
        max_children: int = 4,
        max_rules: int = 5,
        max_depth: int = 10,
        terminal_factor: float | None = None,
    ) -> "Grammar":
        """A random grammar, the same from the same seed on every machine.

        - Each nonterminal's level is uniform on 1 .. max_depth, its number of rules on 1 .. max_rules, the
          length of each rule on 1 .. max_children.
        - Each symbol of a rule: every nonterminal of a higher level has weight 1, all terminals together
          terminal_factor (None: n_terminals), shared among them evenly.
        - Rule probabilities and head distributions are uniform on their simplex (a flat Dirichlet law).

        A seed has separate streams for structure and for terminals: grammars with different n_terminals have
        the same trees where all terminals together weigh the same.
        """
        drawn = draw_grammar(
            seed,
            n_terminals=n_terminals,
            n_nonterminals=n_nonterminals,
            max_children=max_children,
            max_rules=max_rules,
            max_depth=max_depth,
            terminal_factor=terminal_factor,
        )
        rules = [
            tuple(Rule(float(p), tuple(symbols)) for p, symbols in zip(probabilities, right, strict=True))
            for probabilities, right in zip(drawn.probabilities, drawn.right_hand_sides, strict=True)
        ]
        return cls(tuple(drawn.levels), tuple(rules), drawn.heads)

    @property
    def n_terminals(self) -> int:
        return self.heads.shape[1]

    @property
    def n_nonterminals(self) -> int:
        return len(self.levels)

    def name(self, symbol: int) -> str:
        """'t4' for terminal 4, 'N7' for nonterminal 7."""
        return f"t{symbol}" if symbol < self.n_terminals else f"N{symbol - self.n_terminals}"

    def __str__(self) -> str:
        """The rules, a nonterminal a line, by level."""
        lines = []
        for x in sorted(range(self.n_nonterminals), key=lambda x: (self.levels[x], x)):
            sides = [f"{r.probability:.2f} {' '.join(map(self.name, r.symbols))}" for r in self.rules[x]]
            lines.append(f"level {self.levels[x]:2}  N{x} -> {'  |  '.join(sides)}")
        return "\n".join(lines)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grammar):
            return NotImplemented
        same_rules = (self.levels, self.rules) == (other.levels, other.rules)
        return same_rules and np.array_equal(self.heads, other.heads)

    def __hash__(self) -> int:
        return hash((self.levels, self.rules))

    @cached_property
    def shortest(self) -> int:
        """The number of words of the shortest sentence."""
        return min(self._lengths(lambda lengths, rules: min(lengths)))

    @cached_property
    def longest(self) -> int:
        """The number of words of the longest sentence."""
        return max(self._lengths(lambda lengths, rules: max(lengths)))

    @cached_property
    def mean_lengths(self) -> tuple[float, ...]:
        """The mean number of words that each nonterminal gives."""
        return tuple(
            self._lengths(lambda lengths, rules: sum(n * r.probability for n, r in zip(lengths, rules)))
        )

    @property
    def mean_length(self) -> float:
        """The mean number of words of a sentence, before any is redrawn."""
        return sum(self.mean_lengths) / self.n_nonterminals

    def _lengths(self, of_rules: Any) -> list[Any]:
        """The length of each nonterminal's sentences, as `of_rules` combines those of its rules."""
        known: dict[int, Any] = {}
        for x in sorted(range(self.n_nonterminals), key=lambda x: -self.levels[x]):
            words = [
                1 + sum(1 if s < self.n_terminals else known[s - self.n_terminals] for s in rule.symbols)
                for rule in self.rules[x]
            ]
            known[x] = of_rules(words, self.rules[x])
        return [known[x] for x in range(self.n_nonterminals)]

    def to_dict(self) -> dict[str, Any]:
        """The grammar in JSON types; `Grammar.from_dict` is the inverse, to the last bit."""
        nonterminals = [
            {
                "level": level,
                "rules": [
                    {"probability": rule.probability, "symbols": [self.name(s) for s in rule.symbols]}
                    for rule in rules
                ],
                "heads": heads.tolist(),
            }
            for level, rules, heads in zip(self.levels, self.rules, self.heads, strict=True)
        ]
        return {"n_terminals": self.n_terminals, "nonterminals": nonterminals}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Grammar":
        """The grammar that `to_dict` described. Raises ValueError for what is not one."""
        try:
            n_terminals, nonterminals = int(values["n_terminals"]), values["nonterminals"]
            rules = tuple(
                tuple(
                    Rule(
                        float(rule["probability"]),
                        tuple(read_symbol(name, n_terminals) for name in rule["symbols"]),
                    )
                    for rule in nonterminal["rules"]
                )
                for nonterminal in nonterminals
            )
            heads = np.array([nonterminal["heads"] for nonterminal in nonterminals], dtype=np.float64)
            levels = tuple(int(nonterminal["level"]) for nonterminal in nonterminals)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not the description of a grammar: {error!r}.") from error
        if heads.shape != (len(nonterminals), n_terminals):
            raise ValueError(
                f"heads must be one probability for each of {n_terminals} terminals and each of "
                f"{len(nonterminals)} nonterminals, got shape {list(heads.shape)}."
            )
        return cls(levels, rules, heads)

    def save(self, path: str | Path) -> None:
        """Write the grammar as JSON, all of it or nothing."""
        text = json.dumps(self.to_dict())
        write_atomically(Path(path), lambda file: file.write_text(text + "\n"))

    @classmethod
    def load(cls, path: str | Path) -> "Grammar":
        """The grammar of a file that `save` wrote. Raises ValueError if the file is not one."""
        try:
            values = json.loads(Path(path).read_text())
        except ValueError as error:
            raise ValueError(f"{path} is not a whole JSON file: {error}.") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} does not hold a grammar but {type(values).__name__}.")
        return cls.from_dict(values)

    @cached_property
    def rule_table(self) -> Categorical:
        """The rules of all nonterminals, numbered through."""
        return Categorical([np.array([rule.probability for rule in rules]) for rules in self.rules])

    @cached_property
    def head_table(self) -> Categorical:
        """The heads: item x * n_terminals + t is terminal t as the head of nonterminal x."""
        return Categorical(list(self.heads))


def check_distribution(what: str, probabilities: Float[np.ndarray, " item"]) -> None:
    """ValueError unless the probabilities are not negative and sum to 1, to a part in 2^40."""
    total = float(probabilities.sum()) if len(probabilities) else 0.0
    if not (len(probabilities) and bool((probabilities >= 0).all()) and abs(total - 1) * (1 << 40) <= 1):
        raise ValueError(
            f"{what} must have probabilities that are not negative and sum to 1, got a sum of {total}."
        )


def read_symbol(name: str, n_terminals: int) -> int:
    kind, number = name[:1], name[1:]
    if kind not in ("t", "N") or not number.isdecimal() or (kind == "t" and int(number) >= n_terminals):
        raise ValueError(f"symbols are t0 .. t{n_terminals - 1} and N0, N1, ..., got {name!r}")
    return int(number) + (n_terminals if kind == "N" else 0)
