"""Tasks are found by name and survive JSON."""

import json

import pytest

from tasks import AssociativeRecall, Induction, MultiQueryAssociativeRecall, SelectiveCopying, Task


@pytest.mark.parametrize(
    "task",
    [AssociativeRecall(), AssociativeRecall(8, 9, 3, 2, "value", 0.25, 11)],
    ids=["defaults", "everything set"],
)
def test_a_task_survives_json(task):
    text = json.dumps(task.to_dict())
    for reader in (Task, AssociativeRecall):
        assert reader.from_dict(json.loads(text)) == task
    assert task.to_dict()["task"] == "associative_recall"


def test_settings_left_out_take_their_defaults():
    assert Task.from_dict({"task": "associative_recall", "n_pairs": 2}) == AssociativeRecall(n_pairs=2)


def test_reading_leaves_the_settings_as_they_were():
    settings = AssociativeRecall().to_dict()
    Task.from_dict(settings)
    assert settings == AssociativeRecall().to_dict()


@pytest.mark.parametrize("settings", [{"task": "recall"}, {}])
def test_an_unknown_name_lists_the_tasks(settings):
    with pytest.raises(ValueError, match=r"no task named .*; the tasks are .*associative_recall"):
        Task.from_dict(settings)


def test_an_unknown_setting_lists_the_settings():
    with pytest.raises(
        ValueError, match=r"no setting 'n_pair'; its settings are n_keys, .*n_pairs.*split_seed"
    ):
        Task.from_dict({"task": "associative_recall", "n_pair": 2})


@pytest.mark.parametrize(
    "task, names",
    [
        (AssociativeRecall(2, 2, 1), "PAD BOS EOS k0 k1 v0 v1"),
        (MultiQueryAssociativeRecall(2, 3, 1, 4), "PAD BOS EOS k0 k1 v0 v1 v2"),
        (Induction(3, 2, 2), "PAD BOS EOS x0 x1 x2"),
        (SelectiveCopying(3, 1, 2), "PAD BOS EOS . ! x0 x1 x2"),
    ],
)
def test_every_token_has_a_name(task, names):
    assert [task.token_name(token) for token in range(task.d_vocab)] == names.split()


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="'associative_recall' is taken"):

        class Other(Task, name="associative_recall"):
            pass

    assert Task.registry["associative_recall"] is AssociativeRecall


def test_a_class_reads_only_its_own_settings():
    class Echo(Task, name="echo_of_a_test"):
        pass

    try:
        with pytest.raises(
            ValueError, match=r"Echo.from_dict was given the settings of 'associative_recall'"
        ):
            Echo.from_dict({"task": "associative_recall"})
    finally:
        del Task.registry["echo_of_a_test"]


def test_a_task_is_its_settings():
    assert AssociativeRecall(n_pairs=4) == AssociativeRecall(n_pairs=4)
    assert len({AssociativeRecall(n_pairs=4), AssociativeRecall(n_pairs=4), AssociativeRecall()}) == 2
    with pytest.raises(AttributeError):
        setattr(AssociativeRecall(), "n_pairs", 3)  # noqa: B010
