"""The operators on a CPU, compiled by numba: the back end "numba" of `ops.backends`.

The first call for a dtype compiles: 5 s of one core for the selective scan and 5 more for its gradient, 1 for
linear scans, 3 for the delta rules. The code is kept on disk, and a later process loads it in half a second.
"""
