"""What every task offers: documents from a seed, corruptions of them, and what simple rules would score."""

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tasks.documents import Documents

PAD, BOS, EOS = 0, 1, 2
FIRST_CONTENT_TOKEN = 3
SPLITS = ("train", "test")
PROCEDURES = ("unambiguous", "original")


class Task(ABC):
    """A distribution over documents. Subclasses are frozen dataclasses, so a task is its settings.

    `class MyTask(Task, name="my_task")` registers the class, and `Task.from_dict` finds it by that name.
    """

    registry: ClassVar[dict[str, type["Task"]]] = {}
    name: ClassVar[str]
    # the named positions that `corrupt` accepts
    sites: ClassVar[tuple[str, ...]] = (
        "key",
        "query_item_orig",
        "value",
        "target_item_orig",
        "query",
        "query_item",
    )

    def __init_subclass__(cls, name: str, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        known = Task.registry.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"the task name {name!r} is taken by {known.__module__}.{known.__qualname__}.")
        cls.name = name
        Task.registry[name] = cls

    @property
    @abstractmethod
    def d_vocab(self) -> int:
        """The number of token ids."""

    @property
    @abstractmethod
    def n_ctx(self) -> int:
        """The length of the longest document."""

    @abstractmethod
    def sample(
        self, n: int, generator: torch.Generator | int | None = None, split: str = "train"
    ) -> Documents:
        """n independent documents of a split, on the CPU.

        The same seed gives the same documents on every machine, and independent ones for each split. A
        generator is advanced; None draws a fresh seed from the system. torch's global generator is left
        alone.
        """

    @abstractmethod
    def corrupt(
        self,
        docs: Documents,
        site: str,
        generator: torch.Generator | int | None = None,
        procedure: str = "unambiguous",
    ) -> Documents:
        """The documents with one token changed, at the named position `site` of each.

        Answer, labels and positions stay those of the clean documents: what is read out after a corruption
        is the ORIGINAL answer. "unambiguous" never leaves or makes a second way to the answer; "original"
        follows the published procedure, which may.
        """

    @abstractmethod
    def heuristics(self, docs: Documents) -> dict[str, Float[Tensor, " batch"]]:
        """For each simple rule, the probability that it gives the right answer to each document.

        The mean over documents is the accuracy to expect of a model that knows this rule and no other.
        """

    @property
    def solving_rule(self) -> str | None:
        """The heuristic that is right on every document, so no rival of a model; None where there is none."""
        return None

    def token_name(self, token: int) -> str:
        """How a token is shown."""
        return ("PAD", "BOS", "EOS")[token] if token < FIRST_CONTENT_TOKEN else str(token)

    def to_dict(self) -> dict[str, Any]:
        """The name and the settings, of JSON types alone; `Task.from_dict` is the inverse."""
        return {"task": self.name} | {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> "Task":
        """The task that `to_dict` described; settings that are left out take their defaults."""
        settings = dict(settings)
        name = settings.pop("task", None)
        if name not in Task.registry:
            raise ValueError(f"no task named {name!r}; the tasks are {', '.join(sorted(Task.registry))}.")
        found = Task.registry[name]
        if not issubclass(found, cls):
            raise ValueError(
                f"{cls.__name__}.from_dict was given the settings of {name!r}, a {found.__name__}."
            )
        valid = [f.name for f in fields(found)]  # type: ignore[arg-type]
        unknown = [key for key in settings if key not in valid]
        if unknown:
            raise ValueError(f"{name} has no setting {unknown[0]!r}; its settings are {', '.join(valid)}.")
        return found(**settings)


def check_choice(what: str, got: str, choices: tuple[str, ...]) -> None:
    """ValueError unless `got` is one of `choices`."""
    if got not in choices:
        raise ValueError(f"{what} must be one of {', '.join(choices)}, got {got!r}.")


def check_count(what: str, got: int, least: int) -> None:
    """TypeError unless `got` is an integer, ValueError unless it is at least `least`."""
    if isinstance(got, bool) or not isinstance(got, int):
        raise TypeError(f"{what} must be an integer, got {got!r}.")
    if got < least:
        raise ValueError(f"{what} must be at least {least}, got {got}.")


def check_number(what: str, got: float) -> None:
    """TypeError unless `got` is a number."""
    if isinstance(got, bool) or not isinstance(got, (int, float)):
        raise TypeError(f"{what} must be a number, got {got!r}.")


def check_fraction(what: str, got: float) -> None:
    """TypeError unless `got` is a number, ValueError unless it is in [0, 1)."""
    check_number(what, got)
    if not 0 <= got < 1:
        raise ValueError(f"{what} must be in [0, 1), got {got}.")


def check_length(docs: Documents, n_ctx: int) -> None:
    """ValueError unless the documents have `n_ctx` tokens."""
    if docs.tokens.shape[1] != n_ctx:
        raise ValueError(
            f"documents of this task have {n_ctx} tokens, got {docs.tokens.shape[1]} "
            f"(tokens of shape {list(docs.tokens.shape)})."
        )
