"""Pictures: matplotlib figures that a notebook shows and `save` writes (.png, .svg), and pages by plotly.

heatmap, curves               tables with their numbers; lines by name
sweep_map, interactive_sweep  sweeps over positions, with the document's tokens
attention_map                 patterns, and the causal matrices of other mixers
state_map, tap_map            states on their way through a document; the taps of a convolution
"""

from hooked_ssm.plotting.curves import curves
from hooked_ssm.plotting.heat import fixed, heatmap, sweep_map
from hooked_ssm.plotting.interactive import interactive_sweep
from hooked_ssm.plotting.mixing import attention_map, state_map, tap_map
from hooked_ssm.plotting.picture import Picture

__all__ = [
    "Picture",
    "attention_map",
    "curves",
    "fixed",
    "heatmap",
    "interactive_sweep",
    "state_map",
    "sweep_map",
    "tap_map",
]
