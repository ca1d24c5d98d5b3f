"""The recurrences and convolutions as pure functions: no modules, no hooks."""

from .linear_scan import linear_scan
from .selective_scan import selective_scan
from .state_edit import StateEdit, scan_with_edits

__all__ = ["StateEdit", "linear_scan", "scan_with_edits", "selective_scan"]
