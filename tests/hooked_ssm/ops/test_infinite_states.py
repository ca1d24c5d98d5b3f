"""A state that is set is what it was set to, and so is all that follows, though it was infinite before."""

import pytest
import torch

from hooked_ssm.ops import StateEdit, delta_rule, linear_attention, scan_with_edits, selective_scan

pytestmark = pytest.mark.usefixtures("backend")
LENGTH, BROKEN, SET = 20, 3, 11


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def setter(how, entries):
    """Sets the entries to 0.5 at SET, and leaves infinity, and what is no number, as they are elsewhere."""

    def edit(states):
        assert not states[:, SET][entries].isfinite().any()
        if how == "in place":
            states[:, SET][entries] = 0.5
            return None
        new = states.clone()
        new[:, SET][entries] = 0.5
        mask = torch.zeros(states.shape, dtype=torch.bool)
        mask[:, SET][entries] = True
        return StateEdit(new, mask) if how == "named" else new

    return edit


how_set = pytest.mark.parametrize("how", ["returned", "in place", "named"])


@how_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128], ids=str)
def test_linear_scan(how, dtype):
    decay, write = (0.5 * normal(2, LENGTH, 4)).to(dtype), normal(2, LENGTH, 4, seed=1).to(dtype)
    decay[:, BROKEN + 2] = 0  # infinity times it is no number
    write[:, BROKEN, :3] = torch.inf
    states = scan_with_edits(decay, write, setter(how, (slice(None), slice(0, 2))))
    assert (states[:, SET, :2] == 0.5).all()
    assert states[:, SET:, :2].isfinite().all() and states[..., 3].isfinite().all()
    assert states[:, SET + 1 :, :2].abs().max() > 0
    assert not states[:, BROKEN:, 2].isfinite().any()
    h = states[:, SET, :2]
    for t in range(SET + 1, LENGTH):
        h = decay[:, t, :2] * h + write[:, t, :2]
    torch.testing.assert_close(states[:, -1, :2], h)


@how_set
def test_selective_scan(how):
    x, dt = normal(2, LENGTH, 4), normal(2, LENGTH, 4, seed=1).exp()
    A, B, C = -normal(4, 3, seed=2).exp(), normal(2, LENGTH, 3, seed=3), normal(2, LENGTH, 3, seed=4)
    x[:, BROKEN, :3] = torch.inf
    dt[:, BROKEN + 2] = 1e9  # decays of 0
    y, last = selective_scan(x, dt, A, B, C, edit_state=setter(how, (slice(None), slice(0, 2))))
    assert y[:, SET:, :2].isfinite().all() and last[:, :2].isfinite().all()
    torch.testing.assert_close(y[:, SET, :2], 0.5 * C[:, SET].sum(-1, keepdim=True).expand(-1, 2))
    assert y[..., 3].isfinite().all() and not y[:, BROKEN:, 2].isfinite().any()


@how_set
@pytest.mark.parametrize("operator", [delta_rule, linear_attention])
@pytest.mark.parametrize("whole", [True, False], ids=["whole states", "some columns"])
def test_matrix_memories(operator, whole, how):
    q, k, v = normal(2, LENGTH, 2, 3), normal(2, LENGTH, 2, 3, seed=1), normal(2, LENGTH, 2, 4, seed=2)
    k = k / k.norm(dim=-1, keepdim=True)
    v[:, BROKEN] = torch.inf
    log_decay = -normal(2, LENGTH, 2, seed=3).exp()
    between = [normal(2, LENGTH, 2, seed=4).sigmoid()] if operator is delta_rule else []
    columns = slice(None) if whole else slice(0, 2)
    edit = setter(how, (Ellipsis, columns))
    o, last = operator(q, k, v, *between, log_decay, edit_state=edit)
    assert o[:, SET:, :, columns].isfinite().all() and last[..., columns].isfinite().all()
    torch.testing.assert_close(
        o[:, SET, :, columns], 0.5 * q[:, SET].sum(-1, keepdim=True).expand_as(v[:, SET])[..., columns]
    )
    assert whole or not o[:, BROKEN:, :, 2:].isfinite().any()

    # Without what came before: the state starts at what was set.
    rest = [x[:, SET + 1 :] for x in (q, k, v, *between, log_decay)]
    alone, alone_last = operator(*rest, torch.full_like(last, 0.5))
    torch.testing.assert_close(o[:, SET + 1 :, :, columns], alone[..., columns])
    torch.testing.assert_close(last[..., columns], alone_last[..., columns])
