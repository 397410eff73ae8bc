"""Portable Triton: kernels emitted from skeletons, compiled ahead for any target."""
