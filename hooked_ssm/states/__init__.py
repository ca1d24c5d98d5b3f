"""Recurrent states set, replaced, ablated, frozen, read at chosen positions, gone on from; and what flows
from some positions to others knocked out.
"""

from hooked_ssm.states.editing import ablate_states, freeze_states, replace_states, set_states
from hooked_ssm.states.knockout import knock_out_flow
from hooked_ssm.states.reading import graft, resume, state_after, states_at

__all__ = [
    "ablate_states",
    "freeze_states",
    "graft",
    "knock_out_flow",
    "replace_states",
    "resume",
    "set_states",
    "state_after",
    "states_at",
]
