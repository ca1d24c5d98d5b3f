"""Triton kernels, one file an operator, each for a reference in `hooked_ssm.ops`. Importing one needs triton."""
