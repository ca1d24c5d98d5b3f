"""Tests of an operator run on what is compiled, and on torch's form: also with everything that it takes at a
time so small that short documents have several of it, and several levels."""

import pytest

from hooked_ssm.ops import blocked_scan, delta_rule_states, grouped_scan, use_backend


@pytest.fixture(params=["numba", "torch", "torch, in small pieces"])
def backend(request, monkeypatch):
    name, *small = request.param.split(", ")
    if small:
        monkeypatch.setattr(grouped_scan, "GROUP", 2)
        monkeypatch.setattr(delta_rule_states, "CHUNK", 3)
        monkeypatch.setattr(blocked_scan, "CPU_BYTES", 1)
        monkeypatch.setattr(blocked_scan, "LEAST_CHANNELS", 7)
    with use_backend(name):
        yield name
