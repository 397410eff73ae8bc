"""Kernels for sm_90 in Gluon, the language inside Triton that says layouts, copies and barriers itself."""
