"""unless_edited keeps the bits of the fast path where nothing was edited, and has the explicit gradient."""

import torch

from hooked_ssm.ops.looking import unless_edited


def test_entries_that_were_left_alone_keep_the_bits_of_the_fast_path():
    plain = torch.tensor([1.0, 2.0, 0.1, torch.inf])
    exact = plain + 1e-7
    assert torch.equal(unless_edited(exact, plain.clone(), plain), exact)


def test_what_an_edit_erased_leaves_nothing_behind():
    plain = torch.tensor([1e8, 3.0])
    exact = plain * (1 + 1e-7)
    assert torch.equal(unless_edited(exact, torch.tensor([0.0, 3.0]), plain), torch.tensor([0.0, exact[1]]))


def test_the_gradient_is_that_of_the_explicit_path_everywhere():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    plain = 3 * x.detach()
    seen = 3 * x + torch.tensor([0.0, 1.0])
    (grad,) = torch.autograd.grad(unless_edited(plain + 1e-7, seen, plain), x, torch.tensor([5.0, 7.0]))
    assert torch.equal(grad, torch.tensor([15.0, 21.0]))
