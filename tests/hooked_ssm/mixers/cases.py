"""The mixers that the contract is run for: a new one adds its naive form, and the cases beside it, here."""

from . import naive_attention, naive_mamba

CASES = [*naive_attention.CASES, *naive_mamba.CASES]
