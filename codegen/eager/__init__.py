"""The eager backend: what a model means, in plain PyTorch."""
