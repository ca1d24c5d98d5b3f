"""Triton kernels, one file an operator, each for a reference in `hooked_ssm.ops`. They need triton."""
