"""attnc: the compiler for hybrid attention."""

__version__ = "0.1.0"
