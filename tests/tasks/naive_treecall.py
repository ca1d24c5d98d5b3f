"""Treecall once more, naively: all sentences of a small grammar with their questions, one at a time."""

from collections import defaultdict
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True)
class Word:
    label: int
    parent: int  # -1 for the root
    depth: int
    start: int
    stop: int


def expansions(grammar, x):
    """(probability, (head, children)) of all trees of a nonterminal; children are terminals or such trees."""
    for rule in grammar.rules[x]:
        options = []
        for symbol in rule.symbols:
            terminal = symbol < grammar.n_terminals
            options.append(
                [(1.0, symbol)] if terminal else list(expansions(grammar, symbol - grammar.n_terminals))
            )
        for head, p_head in enumerate(grammar.heads[x]):
            for children in product(*options):
                p = rule.probability * p_head
                for p_child, _ in children:
                    p *= p_child
                yield p, (head, tuple(child for _, child in children))


def words_of(tree, side):
    """The words of a tree in the order of the sentence."""
    words = {}

    def write(node, start, depth):
        """Give the node's words their places from `start` on; the place of its head, and where it stops."""
        head, children = node
        at = start + (side == "left")
        below = []
        for child in children:
            if isinstance(child, tuple):
                place, stop = write(child, at, depth + 1)
            else:
                words[at] = [child, None, depth, at, at + 1]
                place, stop = at, at + 1
            below.append(place)
            at = stop
        place = start if side == "left" else at
        stop = at + (side == "right")
        words[place] = [head, -1, depth, start, stop]
        for child in below:
            words[child][1] = place
        return place, stop

    write(tree, 0, 1)
    return tuple(Word(*words[place]) for place in range(len(words)))


def pairs_of(words, relation, *, rightmost, self_siblings, keep):
    """All eligible (query, target); keep(target label, query label) says which pairs of labels are asked."""
    labels = [word.label for word in words]
    is_last = [label not in labels[i + 1 :] for i, label in enumerate(labels)]
    children = defaultdict(list)
    for i, word in enumerate(words):
        children[word.parent].append(i)
    pairs = []
    for i, j in product(range(len(words)), repeat=2):
        a, b = words[i], words[j]
        if relation == "parent":
            related = a.parent == j
        elif relation == "child":
            related = b.parent == i
        else:
            related = j == max(children[a.parent]) and (self_siblings or i != j)
        if not related or (rightmost and not (is_last[i] and (relation != "sibling" or is_last[j]))):
            continue
        if keep(b.label, a.label):
            pairs.append((i, j))
    return pairs


def questions_of(words, relations, first, **rules):
    """The probability of each (relation, query, target)."""
    by_relation = {relation: pairs_of(words, relation, **rules) for relation in relations}
    by_relation = {relation: pairs for relation, pairs in by_relation.items() if pairs}
    place = 0 if first == "query" else 1
    law = defaultdict(float)
    for relation, pairs in by_relation.items():
        firsts = {pair[place] for pair in pairs}
        for pair in pairs:
            same = sum(other[place] == pair[place] for other in pairs)
            law[(relation, *pair)] += 1 / len(by_relation) / len(firsts) / same
    return dict(law)


def law_of(grammar, *, side, relations, first, max_length, is_mine=lambda words: True, **rules):
    """The probability of each document, as (words, relation, query, target)."""
    law = defaultdict(float)
    for x in range(grammar.n_nonterminals):
        for p, tree in expansions(grammar, x):
            words = words_of(tree, side)
            if not 3 <= len(words) <= max_length or not is_mine(words):
                continue
            for question, p_question in questions_of(words, relations, first, **rules).items():
                law[(words, *question)] += p * p_question
    total = sum(law.values())
    return {document: p / total for document, p in law.items()}


def read_documents(docs):
    """(words, number of the relation, query, target) of each document, as `law_of` has them."""
    fields = (docs.tokens, docs.parent, docs.depth, docs.span[..., 0], docs.span[..., 1])
    where = [docs.positions[name] for name in ("divider", "key", "value")]
    asked = zip(*(t.tolist() for t in (docs.relation, *where)), strict=True)
    read = []
    for (relation, divider, key, value), *rows in zip(asked, *(t.tolist() for t in fields), strict=True):
        words = tuple(
            Word(token - 3, parent - 1 if parent >= 0 else -1, depth, start - 1, stop - 1)
            for token, parent, depth, start, stop in zip(*(row[1:divider] for row in rows), strict=True)
        )
        read.append((words, relation, key - 1, value - 1))
    return read
