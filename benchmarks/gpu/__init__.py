"""What runs on a GPU, checked and timed against its named peers in one call: python -m benchmarks.gpu"""
