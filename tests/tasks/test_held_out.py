"""The hash is SplitMix64, and the pairs it holds out are about the share asked for."""

import pytest
import torch

from tasks.hashing import GAMMA, shift_right, signed, splitmix, splitmix_tensor
from tasks.held_out import is_held_out


def test_splitmix_gives_the_published_sequence():
    # the first outputs of the reference C program (Vigna) seeded with 1234567
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [splitmix(1234567 + i * GAMMA) for i in range(4)] == published


def test_the_tensor_form_has_the_same_bits():
    words = [0, 1, -1, 1234567, 2**63 - 1, -(2**63), 987654321987654321]
    assert splitmix_tensor(torch.tensor(words)).tolist() == [signed(splitmix(word)) for word in words]


def test_shift_right_moves_in_zeros():
    assert shift_right(torch.tensor([-1, -2, 5]), 1).tolist() == [2**63 - 1, 2**63 - 1, 2]


def test_membership_follows_the_definition():
    keys, values = torch.cartesian_prod(torch.arange(40), torch.arange(40)).unbind(-1)
    for fraction, seed in ((0.2, 0), (0.7, -3)):
        expected = [
            splitmix((k << 32) + v + splitmix(seed)) < fraction * 2**64
            for k, v in zip(keys.tolist(), values.tolist(), strict=True)
        ]
        assert is_held_out(keys, values, fraction, seed).tolist() == expected


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.9])
def test_the_share_held_out_is_the_fraction(fraction):
    grid = torch.cartesian_prod(torch.arange(1000), torch.arange(1000))
    held = is_held_out(grid[:, 0], grid[:, 1], fraction, seed=0).view(1000, 1000).double()
    deviation = (fraction * (1 - fraction) / 1000) ** 0.5  # of the share in one row or column
    assert abs(held.mean().item() - fraction) < 5 * deviation / 1000**0.5
    assert (held.mean(0) - fraction).abs().max() < 6 * deviation
    assert (held.mean(1) - fraction).abs().max() < 6 * deviation


def test_a_larger_fraction_holds_out_the_same_pairs_and_more():
    keys, values = torch.cartesian_prod(torch.arange(100), torch.arange(100)).unbind(-1)
    small, large = is_held_out(keys, values, 0.1, 7), is_held_out(keys, values, 0.3, 7)
    assert bool((large | ~small).all()) and large.sum() > small.sum()


def test_seeds_hold_out_independent_sets():
    keys, values = torch.cartesian_prod(torch.arange(300), torch.arange(300)).unbind(-1)
    both = is_held_out(keys, values, 0.3, 0) & is_held_out(keys, values, 0.3, 1)
    assert abs(both.double().mean().item() - 0.09) < 5 * (0.09 * 0.91 / 300**2) ** 0.5


def test_nothing_is_held_out_at_zero():
    assert not is_held_out(torch.arange(1000), torch.arange(1000), 0.0, 0).any()


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_outside_the_unit_interval_is_refused(fraction):
    with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\)"):
        is_held_out(torch.tensor([0]), torch.tensor([0]), fraction, 0)
