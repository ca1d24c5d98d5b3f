"""Tests of an operator run on the reference and on what is compiled."""

import pytest

from hooked_ssm.ops import use_backend


@pytest.fixture(params=["numba", "torch"])
def backend(request):
    with use_backend(request.param):
        yield request.param
