"""Feature maps of queries and keys: products of features stand for the weights of a softmax.

Legend: x [T, heads, D]; F features. Results have x's dtype, what is between is in fp32 (float64 if x is).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .gates import wide


def elu(x: Tensor) -> Tensor:
    """elu(x) + 1 (arXiv 2006.16236)."""
    return F.elu(x) + 1


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return F.relu(x)


def softmax(x: Tensor) -> Tensor:
    """Softmax over a head's channels (arXiv 1812.01243)."""
    return torch.softmax(wide(x), dim=-1).to(x.dtype)


def taylor(x: Tensor, degree: int) -> Tensor:
    """Monomials of up to `degree`, each once, F = C(D + degree, degree), so that products of features are the Taylor polynomial
    of exp(q . k) (BASED, arXiv 2402.18668).

    A monomial with exponents e_1, e_2, ... has the factor 1 / sqrt(e_1! e_2! ...).
    """
    y = wide(x)
    powers = [torch.ones_like(y[..., :1])]
    for n in range(1, degree + 1):
        places, factors = _monomials(x.shape[-1], n, x.device)
        found = factors.to(y.dtype)
        for channels in places.unbind(-1):
            found = found * y[..., channels]
        powers.append(found)
    return torch.cat(powers, dim=-1).to(x.dtype)


_MADE: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor]] = {}
"""What `_monomials` has made: a compiled model reads it as a constant."""


def _monomials(width: int, degree: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The channels of each monomial, [F, degree], and its factor, [F] float64."""
    key = width, degree, device
    if key in _MADE:
        return _MADE[key]
    with torch.inference_mode(False):
        places = torch.combinations(torch.arange(width), degree, with_replacement=True).view(-1, degree)
        same = (places.unsqueeze(-1) == places.unsqueeze(-2)).tril().sum(dim=-1)  # the how-manieth of its channel each is
        made = places.to(device), same.to(torch.float64).prod(dim=-1).rsqrt().to(device)
    if not torch.compiler.is_compiling():  # nothing of a compiled graph may outlive it
        _MADE[key] = made
    return made


def favor(x: Tensor, directions: Tensor) -> Tensor:
    """exp(w . x - |x|^2 / 2) / sqrt(F) for random directions w [F, D] (FAVOR+, arXiv 2009.14794)."""
    y, w = wide(x), wide(directions).to(wide(x).dtype)
    exponents = F.linear(y, w) - y.square().sum(dim=-1, keepdim=True) / 2
    return (exponents.exp() / math.sqrt(w.shape[0])).to(x.dtype)


def hedgehog(x: Tensor, weight: Tensor) -> Tensor:
    """softmax of (W x, -W x), F = 2 D, with W [heads, D, D] learned (Hedgehog, arXiv 2402.04347)."""
    y = torch.einsum("thd,hed->the", wide(x), weight.to(wide(x).dtype))
    return torch.softmax(torch.cat((y, -y), dim=-1), dim=-1).to(x.dtype)
