"""Published checkpoints, and live models of other libraries, as a `HookedSSM`."""

from hooked_ssm.loading.formats import SUPPORTED
from hooked_ssm.loading.pretrained import from_pretrained

__all__ = ["SUPPORTED", "from_pretrained"]
