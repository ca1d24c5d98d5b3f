"""Synthetic tasks: documents with one known answer, named positions, and corruptions of them."""

from tasks.associative_recall import AssociativeRecall
from tasks.documents import IGNORE, Documents
from tasks.grammar import Grammar
from tasks.held_out import is_held_out
from tasks.induction import Induction
from tasks.mqar import MultiQueryAssociativeRecall
from tasks.selective_copying import SelectiveCopying
from tasks.task import BOS, EOS, FIRST_CONTENT_TOKEN, PAD, Task
from tasks.tree_documents import TreeDocuments
from tasks.treecall import AssociativeTreecall

__all__ = [
    "BOS",
    "EOS",
    "FIRST_CONTENT_TOKEN",
    "IGNORE",
    "PAD",
    "AssociativeRecall",
    "AssociativeTreecall",
    "Documents",
    "Grammar",
    "Induction",
    "MultiQueryAssociativeRecall",
    "SelectiveCopying",
    "Task",
    "TreeDocuments",
    "is_held_out",
]
