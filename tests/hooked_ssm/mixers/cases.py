"""The mixers that the contract is run for: a new one adds its naive form, and the cases beside it, here."""

from . import (
    naive_attention,
    naive_base_conv,
    naive_based,
    naive_delta_net,
    naive_gla,
    naive_h3,
    naive_hyena,
    naive_mamba,
    naive_mamba2,
)

CASES = [
    *naive_attention.CASES,
    *naive_base_conv.CASES,
    *naive_delta_net.CASES,
    *naive_gla.CASES,
    *naive_h3.CASES,
    *naive_hyena.CASES,
    *naive_mamba.CASES,
    *naive_mamba2.CASES,
    *naive_based.CASES,
]
