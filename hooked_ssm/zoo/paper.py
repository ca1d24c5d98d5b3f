"""Every architecture as the paper (arXiv:2505.15105) trained it, oddities included.

Called as the presets of `hooked_ssm.zoo.published`. In the paper every architecture has two layers.
"""

from collections.abc import Callable

from hooked_ssm.config import HookedSSMConfig
from hooked_ssm.zoo.published import attention, mamba

PRESETS: dict[str, Callable[..., HookedSSMConfig]] = {
    "attention": attention,
    "mamba": mamba,
}
