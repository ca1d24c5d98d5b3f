"""The operators on a CPU, compiled by numba: the back end "numba" of `ops.backends`.

The first call for a dtype compiles, some seconds an operator, and keeps the code on disk for later processes.
"""
