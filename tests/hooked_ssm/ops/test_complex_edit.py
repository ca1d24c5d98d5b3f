"""Complex states edited through their real and imaginary parts, against the recurrence as a plain loop."""

import pytest
import torch
from torch import Tensor

from hooked_ssm.ops import StateEdit, scan_with_edits
from hooked_ssm.ops.complex_edit import edit_as_real, edit_states_as_real

BATCH, LENGTH, WIDTH = 2, 6, 3


def inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    decay, write, values = (
        torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.complex128, generator=generator) for _ in range(3)
    )
    return [x.requires_grad_() for x in (0.7 * decay, write, values)]


def loop(decay: Tensor, write: Tensor, set_to: dict[int, tuple[slice, Tensor]]) -> Tensor:
    """The states, of which at some positions some entries are set."""
    h, states = torch.zeros_like(write[:, 0]), []
    for t in range(LENGTH):
        h = decay[:, t] * h + write[:, t]
        if t in set_to:
            entries, value = set_to[t]
            h = torch.cat([h[:, : entries.start], value[:, entries], h[:, entries.stop :]], dim=1)
        states.append(h)
    return torch.stack(states, dim=1)


@pytest.mark.parametrize("how", ["returned", "in place", "in place, nothing returned"])
@pytest.mark.parametrize(
    "real_at", [{}, {2: slice(0, 3)}, {0: slice(1, 2), 4: slice(0, 2)}, {5: slice(2, 3)}], ids=str
)
def test_a_number_of_which_the_real_part_is_set_is_what_came_back_and_is_carried_on(how, real_at):
    """Values and gradients. The imaginary part that came back is the unedited trajectory's."""
    decay, write, values = inputs()
    seen = []

    def edit(parts: Tensor) -> Tensor | None:
        seen.append(parts.detach().clone())
        if how == "returned":
            parts = parts.clone()
        for t, entries in real_at.items():
            parts[:, t, entries, 0] = values[:, t, entries].real
        return None if how == "in place, nothing returned" else parts

    got = scan_with_edits(decay, write, edit_states_as_real(edit))
    raw = loop(decay, write, {})
    assert seen[0].shape == (BATCH, LENGTH, WIDTH, 2) and seen[0].dtype == torch.float64
    torch.testing.assert_close(torch.view_as_complex(seen[0]), raw, rtol=1e-13, atol=1e-13)
    wanted = loop(
        decay,
        write,
        {t: (part, torch.complex(values[:, t].real, raw[:, t].imag)) for t, part in real_at.items()},
    )
    torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-13)

    weight = torch.randn(wanted.shape, dtype=wanted.dtype, generator=torch.Generator().manual_seed(1))
    grads = (
        torch.autograd.grad((weight * states).sum().real, [decay, write, values], materialize_grads=True)
        for states in (got, wanted)
    )
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("axes", ["by part", "all parts"])
def test_a_freeze_of_either_part_holds_the_number(part, axes):
    decay, write, values = inputs()
    raw = loop(decay, write, {})

    def edit(parts: Tensor) -> StateEdit:
        parts = parts.clone()
        parts[:, 1] = torch.view_as_real(values[:, 1])
        mask = torch.zeros(LENGTH, 1, 2 if axes == "by part" else 1, dtype=torch.bool)
        mask[3, :, part if axes == "by part" else 0] = True
        return StateEdit(parts, mask)

    got = scan_with_edits(decay, write, edit_states_as_real(edit))
    everything = slice(0, WIDTH)
    wanted = loop(decay, write, {1: (everything, values[:, 1]), 3: (everything, raw[:, 3])})
    torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-13)


def test_other_tensors_are_edited_by_parts_too():
    x = inputs()[0]
    doubled = edit_as_real("writes", lambda parts: 2 * parts, x)
    torch.testing.assert_close(doubled, 2 * x, rtol=0, atol=0)
    assert torch.equal(edit_as_real("writes", lambda parts: None, x), x)
    transposed = edit_as_real("writes", lambda parts: parts.mT.contiguous().mT, x)  # parts not side by side
    assert torch.equal(transposed, x)


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (
            torch.zeros(BATCH, LENGTH, WIDTH, dtype=torch.float64),
            ValueError,
            r"\(2, 6, 3, 2\), got \(2, 6, 3\)",
        ),
        (torch.zeros(BATCH, LENGTH, WIDTH, 2), TypeError, "float64 on cpu, got torch.float32"),
        (3, TypeError, "hook on the states must return a tensor or None, got int"),
        (
            StateEdit(
                torch.zeros(BATCH, LENGTH, WIDTH, 2, dtype=torch.float64), torch.zeros(5, dtype=torch.bool)
            ),
            ValueError,
            r"mask must broadcast to the states' \(2, 6, 3, 2\), got \(5,\)",
        ),
    ],
    ids=["shape", "dtype", "no tensor", "mask shape"],
)
def test_what_cannot_stand_in_for_the_states_is_refused(returned, error, message):
    decay, write, _ = inputs()
    with pytest.raises(error, match=message):
        scan_with_edits(decay, write, edit_states_as_real(lambda parts: returned))


@pytest.mark.parametrize("mask", [torch.zeros(BATCH, LENGTH, WIDTH, 2), True], ids=["floats", "no tensor"])
def test_a_mask_must_be_boolean(mask):
    def edit(parts: Tensor) -> StateEdit:
        return StateEdit(parts, mask)  # where types are checked, it is refused here already

    decay, write, _ = inputs()
    with pytest.raises(TypeError, match="mask"):
        scan_with_edits(decay, write, edit_states_as_real(edit))
