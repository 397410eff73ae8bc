"""Weights of a module: read from safetensors files with exact complaints, or made from a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .codes import CODES

FLOATS = ("F64", "F32", "F16", "BF16")
"""Words of the file format for floats that need no scales to be read."""

SHOWN = 8
"""Names that a complaint lists before it counts the rest."""

Start = float | tuple[float, float] | tuple[str, float, float, str]
"""A number that fills a tensor, (mean, standard deviation) of normal numbers, or (how, low, high, stored as): numbers between
`low` and `high`, drawn `even` or with logarithms that are (`log_even`), or a `count` along the last axis from `low` in steps of
`high`, or `high` on the diagonal (`identity`), or normal rows of which some are `orthogonal`; stored `plain`, as their `log`,
or as what softplus makes them of (`inverse_softplus`).
"""


class WeightsError(ValueError):
    """Weights that cannot be loaded. `code`: one of CODES; `names`: the tensors (or files) concerned."""

    def __init__(self, code: str, message: str, names: Sequence[str]) -> None:
        super().__init__(f"{code}: {CODES[code][0]}: {message}")
        self.code, self.names = code, tuple(names)


def load_weights(
    module: nn.Module,
    files: Path | str | Sequence[Path | str],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Read the tensors of one or several safetensors files into the module's parameters; raises WeightsError.

    Nothing changes unless all fit: every parameter is there (of tied ones, one name is enough, and several agree), nothing
    else is, shapes agree, and floats go to floats. Parameters on the device `meta` come to be on `device` (default: the CPU),
    in `dtype` (default: the file's); others keep theirs and take the numbers.
    """
    paths = [Path(files)] if isinstance(files, str | Path) else [Path(file) for file in files]
    shapes, homes = contents(paths)
    places = _places(module)
    _complain(shapes, places)
    _check_ties(homes, places)
    with torch.no_grad():
        for path in paths:
            with safe_open(path, framework="pt") as file:
                for name in (name for name, home in homes.items() if home == path):
                    _put(module, places, name, file.get_tensor(name), device, dtype)


def _check_ties(homes: Mapping[str, Path], places: Mapping[str, Tensor]) -> None:
    """Names of one tensor hold the same numbers."""
    first_names: dict[int, str] = {}
    for name in homes:
        first = first_names.setdefault(id(places[name]), name)
        if first != name and not torch.equal(_read(homes, first), _read(homes, name)):
            raise WeightsError("A547", f"{first} and {name}", [first, name])


def _read(homes: Mapping[str, Path], name: str) -> Tensor:
    with safe_open(homes[name], framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def _put(
    module: nn.Module,
    places: dict[str, Tensor],
    name: str,
    numbers: Tensor,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> None:
    """Copy into a parameter or buffer; one on `meta` is replaced, under all the names that it goes by."""
    old = places[name]
    if not old.is_meta:
        old.copy_(numbers)
        return
    moved = numbers.to(device=device or "cpu", dtype=dtype if old.is_floating_point() else None)
    new: Tensor = nn.Parameter(moved, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else moved
    for alias in [alias for alias, tensor in places.items() if tensor is old]:
        parent, _, own = alias.rpartition(".")
        setattr(module.get_submodule(parent), own, new)
        places[alias] = new


def _places(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and kept buffers, tied ones under each of their names."""
    kept = module.state_dict(keep_vars=True)
    buffers = {name: buffer for name, buffer in module.named_buffers(remove_duplicate=False) if name in kept}
    return {**dict(module.named_parameters(remove_duplicate=False)), **buffers}


def contents(paths: Sequence[Path]) -> tuple[dict[str, tuple[tuple[int, ...], str]], dict[str, Path]]:
    """({name: (shape, dtype word)}, {name: its file}) from the files' headers alone."""
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise WeightsError("A541", ", ".join(missing), missing)
    shapes: dict[str, tuple[tuple[int, ...], str]] = {}
    homes: dict[str, Path] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (the file is no mapping)
                new = {name: (tuple(part.get_shape()), str(part.get_dtype())) for name, part in found.items()}
        except (SafetensorError, OSError) as error:
            raise WeightsError("A542", f"{path}: {error}", [str(path)]) from error
        twice = sorted(set(new) & set(shapes))
        if twice:
            raise WeightsError("A544", f"in {homes[twice[0]]} and again in {path}: {_listed(twice)}", twice)
        shapes |= new
        homes |= dict.fromkeys(new, path)
    return shapes, homes


def _complain(found: Mapping[str, tuple[tuple[int, ...], str]], places: Mapping[str, Tensor]) -> None:
    present = {id(places[name]) for name in found if name in places}
    first_names: dict[int, str] = {}
    for name, tensor in places.items():
        first_names.setdefault(id(tensor), name)
    missing = [name for tensor, name in first_names.items() if tensor not in present]
    if missing:
        raise WeightsError("A543", _listed(missing), missing)
    unexpected = sorted(set(found) - set(places))
    if unexpected:
        raise WeightsError("A544", _listed(unexpected), unexpected)
    wrong = sorted(name for name, (shape, _) in found.items() if shape != tuple(places[name].shape))
    if wrong:
        notes = [f"{name} is {list(found[name][0])} where the model has {list(places[name].shape)}" for name in wrong]
        raise WeightsError("A545", _listed(notes), wrong)
    mixed = sorted(name for name, (_, dtype) in found.items() if (dtype in FLOATS) != places[name].is_floating_point())
    if mixed:
        notes = [f"{name} holds {found[name][1]} where the model has {places[name].dtype}" for name in mixed]
        raise WeightsError("A546", _listed(notes), mixed)


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _generator(name: str, seed: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def check_files(files: Sequence[Path], shapes: Mapping[str, tuple[int, ...]], spare: Collection[str] = ()) -> None:
    """WeightsError if the files do not hold exactly float tensors of these names and shapes; only their headers are read.

    Those of `spare` may be there, and do not count.
    """
    found = {name: one for name, one in contents(files)[0].items() if name in shapes or name not in spare}
    _complain(found, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()})


def started(name: str, shape: Sequence[int], start: Start, seed: int) -> Tensor:
    """A float32 tensor as it starts: its numbers depend on its name and the seed alone."""
    if not isinstance(start, tuple):
        return torch.full(tuple(shape), start, dtype=torch.float32)
    if len(start) == 4:
        return _stored(_numbers(name, shape, start[:3], seed), start[3]).to(torch.float32)
    mean, deviation = start
    return torch.randn(tuple(shape), generator=_generator(name, seed), dtype=torch.float32) * deviation + mean


def _numbers(name: str, shape: Sequence[int], start: tuple[str, float, float], seed: int) -> Tensor:
    """Float64 numbers counted or drawn, before they are stored."""
    how, low, high = start
    if how == "count":
        return (low + high * torch.arange(shape[-1], dtype=torch.float64)).expand(tuple(shape)).contiguous()
    if how == "identity":
        return high * torch.eye(shape[-1], dtype=torch.float64).expand(tuple(shape))
    if how == "orthogonal":  # rows as long as normal ones are (FAVOR+, arXiv 2009.14794)
        blocks = -(-shape[0] // shape[1])
        drawn = torch.randn(blocks, shape[1], shape[1], generator=_generator(name, seed), dtype=torch.float64)
        turned: Tensor = torch.linalg.qr(drawn).Q
        lengths = torch.randn(tuple(shape), generator=_generator(f"{name}.lengths", seed), dtype=torch.float64).norm(dim=1)
        return torch.mul(turned.flatten(0, 1)[: shape[0]], lengths.unsqueeze(1))
    drawn = torch.rand(tuple(shape), generator=_generator(name, seed), dtype=torch.float64)
    if how == "log_even":
        return low * (high / low) ** drawn
    assert how == "even", how
    return low + (high - low) * drawn


def _stored(numbers: Tensor, stored: str) -> Tensor:
    match stored:
        case "log":
            return numbers.log()
        case "inverse_softplus":  # softplus(x) = numbers; log(exp(n) - 1) would lose the digits of small ones
            return numbers + torch.log(-torch.expm1(-numbers))
        case _:
            assert stored == "plain", stored
            return numbers
