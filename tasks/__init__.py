"""Synthetic tasks: documents with one known answer, named positions, and corruptions of them."""

from tasks.associative_recall import AssociativeRecall
from tasks.documents import IGNORE, Documents
from tasks.held_out import is_held_out
from tasks.task import BOS, EOS, FIRST_CONTENT_TOKEN, PAD, Task

__all__ = [
    "BOS",
    "EOS",
    "FIRST_CONTENT_TOKEN",
    "IGNORE",
    "PAD",
    "AssociativeRecall",
    "Documents",
    "Task",
    "is_held_out",
]
