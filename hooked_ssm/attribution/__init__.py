"""Attribution: what an activation, or an edge between two, is worth to a metric, from gradients.

    gradient_attribution(model, clean, corrupted, metric)               every hook: 2 forwards, 1 backward
    integrated_gradients(model, clean, corrupted, metric, "conv_taps")  averaged on the way to the clean run
    edge_attribution(model, clean, corrupted, metric)                   EAP, and with steps=5 EAP-IG
    edge_attribution(model, clean, corrupted, metric, "mixer")          and inside the mixers
    agreement(model, clean, corrupted, metric, "ssm_state")             how near these come to patching

Scores are (clean - corrupted) . gradient: a first-order estimate of by how much the metric of the corrupted
run would rise if the clean activation were patched in.
"""

from hooked_ssm.attribution.agreement import Agreement, agreement
from hooked_ssm.attribution.edges import edge_attribution
from hooked_ssm.attribution.graph import Graph, mixer_graph, residual_graph
from hooked_ssm.attribution.nodes import gradient_attribution, integrated_gradients
from hooked_ssm.attribution.result import Attribution, EdgeAttribution

__all__ = [
    "gradient_attribution",
    "integrated_gradients",
    "edge_attribution",
    "agreement",
    "Attribution",
    "EdgeAttribution",
    "Agreement",
    "Graph",
    "residual_graph",
    "mixer_graph",
]
