"""Machines: a planned graph in, a folder of readable PyTorch and kernels out. Knows kernel families, never a kind by name."""
