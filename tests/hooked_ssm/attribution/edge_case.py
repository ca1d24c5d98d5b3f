"""Edges of the models and documents that sweeps are tested with."""

from hooked_ssm.attribution import edge_attribution

READERS = ("hook_q_input", "hook_k_input", "hook_v_input", "hook_attn_in", "hook_mlp_in", "hook_resid_post")


def edges_of(case, graph="residual", **options):
    metric = options.pop("metric", case.per_document)
    return edge_attribution(case.model, case.clean, case.corrupted, metric, graph, **options)


def with_flags(model, flags, use):
    for flag in flags:
        getattr(model, f"set_{flag}")(use)
