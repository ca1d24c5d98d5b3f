"""The recurrences and convolutions as pure functions: no modules, no hooks."""

from .at import At
from .backends import BackendError, use_backend
from .delta_rule import delta_rule
from .linear_attention import linear_attention
from .linear_scan import linear_scan
from .long_conv import long_conv
from .selective_scan import selective_scan
from .state_edit import StateEdit, scan_with_edits

__all__ = [
    "At",
    "BackendError",
    "StateEdit",
    "delta_rule",
    "linear_attention",
    "linear_scan",
    "long_conv",
    "scan_with_edits",
    "selective_scan",
    "use_backend",
]
