"""Are a folder's kernels right on this machine? Inputs, what must come out in float64, and how far off one may be."""
