"""How numbers are written in a spec."""

from __future__ import annotations


def number(value: float) -> str:
    """The shortest text that reads back as `value`: whole numbers without a point, no padding in exponents."""
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 2**53):
        return str(int(value))
    mantissa, _, exponent = repr(float(value)).partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa
