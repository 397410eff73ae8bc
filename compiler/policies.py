"""Policy files: read, found beside a spec, and turned into the spec in which everything is decided."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attnc.compiler.check import check
from attnc.compiler.data import from_json
from attnc.compiler.gathered import gathered
from attnc.compiler.policy import SUFFIX, Policy, Setting, spec_digest, written
from attnc.compiler.previous import held, makes_choice, takes_choice
from attnc.compiler.reduce import reduce
from attnc.compiler.spec import Spec
from attnc.compiler.units import Candidate, Place, Unit, Units
from attnc.compiler.walk import kinds
from attnc.dsl.diagnostic import Diagnostic, SpecError
from attnc.dsl.files import read as read_source
from attnc.dsl.parse import parse
from attnc.dsl.source import Source, Span

ANEW = "tune the spec again"
AGAIN = "`attnc tune solve` writes one; `attnc schema policy` prints the shape"


def read_policy(path: Path) -> Policy:
    """The policy in a file. Raises SpecError A601 for anything else, or for a file that is not there."""
    try:
        return from_json(Policy, path.read_bytes())
    except OSError as error:
        raise trouble("A601", f"the policy `{path}` cannot be read: {(error.strerror or '').lower()}", path, AGAIN) from error
    except ValueError as error:  # pydantic's is one
        details: Any = getattr(error, "errors", list)()
        first = details[0] if details else {"loc": (), "msg": str(error)}
        where = ".".join(map(str, first["loc"]))
        message = f"`{path.name}` is no policy: {f'{where}: ' if where else ''}{first['msg']}"
        raise trouble("A601", message, path, AGAIN) from error


def beside(spec: Path, device: str) -> tuple[tuple[Path, Policy] | None, tuple[Path, ...]]:
    """(the policy beside a spec that was made for a device, those that were made for others).

    Raises SpecError A601 for a damaged one, A603 where two were made for the device.
    """
    found = [(path, read_policy(path)) for path in sorted(spec.parent.glob(f"{spec.stem}.*{SUFFIX}"))]
    own = [(path, policy) for path, policy in found if policy.machine.device == device]
    if len(own) > 1:
        names = " and ".join(f"`{path.name}`" for path, _ in own)
        raise trouble("A603", f"{names} were both made for {device}", spec, "name one with `--policy FILE`")
    return (own[0] if own else None), tuple(path for path, policy in found if policy.machine.device != device)


def path_beside(spec: Path, device: str) -> Path:
    """Where the policy of a spec for a device lies."""
    return spec.with_name(f"{spec.stem}.{device}{SUFFIX}")


def settle(spec: Spec, policy: Policy, path: Path | str = "policy") -> Spec:
    """The spec as a policy decides it. Raises SpecError A602, A604; `path` is what they point at."""
    units = Units(spec)
    settled = units.settled(picks_of(units, policy, path))
    check_sources(settled, path)
    return settled


def of_folder(folder: Path) -> Spec:
    """The spec that a built folder was made of: its text, made small or decided by a policy as the folder was."""
    spec = check(parse(read_source(folder / "spec.attn")))
    built = json.loads((folder / "plan.json").read_text("utf-8"))
    if built.get("reduced") is not None:
        spec = reduce(spec, built["reduced"])[0]
    path = folder / "policy.json"
    if not path.is_file():
        return spec
    moved = built.get("heads", {})
    return gathered(settle(spec, read_policy(path), path), lambda layer: str(layer) in moved).spec


def alternatives(spec: Spec) -> Iterator[Spec]:
    """The spec with the first, second, ... alternative everywhere, which together have all tensors of all of them."""
    units = Units(spec)
    found = units.all()
    names = [list(dict.fromkeys(one.choose for one in unit.candidates)) for unit in found]
    for number in range(max(map(len, names), default=0)):
        picks = {}
        for unit, choices in zip(found, names, strict=True):
            wanted = choices[min(number, len(choices) - 1)]
            picks[unit.place] = [next(one for one in unit.candidates if one.choose == wanted)] * unit.kv_heads
        yield units.settled(picks)


def rows(unit: Unit, picks: Sequence[Candidate], shared: Mapping[str, object]) -> Iterator[Setting]:
    """A row for each run of KV groups of a unit with the same candidate; budgets of all layers stand elsewhere."""
    first = 0
    for group, one in enumerate(picks):
        if group + 1 == len(picks) or picks[group + 1] != one:
            budgets = {path: number for path, number in one.budgets if path not in shared}
            place: dict[str, Any] = {"layer": unit.layer, "scope": unit.scope, "first": first, "last": group}
            yield Setting(**place, choose=written(dict(one.choose)), budgets=budgets)
            first = group + 1


def picks_of(units_of: Units, policy: Policy, path: Path | str) -> dict[Place, list[Candidate]]:
    """A candidate for each KV group of each unit. Raises SpecError A602 for a policy of another text, or where rows do not
    cover each KV group once.
    """
    here = spec_digest(units_of.spec)
    if policy.spec != here:
        message = f"the policy was made for another text of {policy.model} (SHA-256 {policy.spec[:12]}, here {here[:12]})"
        raise trouble("A602", message, path, "tune the spec as it is now, or bring the other text back")
    units = {unit.place: unit for unit in units_of.all()}
    picks: dict[Place, dict[int, Candidate]] = {place: {} for place in units}
    for row in policy.settings:
        unit = units.get((row.layer, row.scope))
        where = f"layer {row.layer}{f', {row.scope}' if row.scope else ''}, KV groups {row.first}..{row.last}"
        if unit is None or not 0 <= row.first <= row.last < unit.kv_heads:
            raise trouble(
                "A602", f"the policy decides {where}, where the spec leaves nothing open", path, "tune the spec again"
            )
        if unit.per == "layer" and (row.first, row.last) != (0, unit.kv_heads - 1):
            raise trouble("A602", f"the policy splits {where}, which the spec decides as a whole", path, ANEW)
        made = _candidate(unit, row, policy, units_of)
        if made is None:
            said = Candidate(tuple(row.words.items()), tuple(row.budgets.items())).name
            message = f"the spec has no such alternative at {where}: {said or 'nothing'}"
            raise trouble("A602", message, path, f"such as {unit.candidates[0].name}")
        for group in range(row.first, row.last + 1):
            if group in picks[row.layer, row.scope]:
                raise trouble("A602", f"the policy decides {where} twice", path, "leave one row")
            picks[row.layer, row.scope][group] = made
    for place, unit in units.items():
        open_ones = [group for group in range(unit.kv_heads) if group not in picks[place]]
        if open_ones:
            message = f"the policy leaves KV group {open_ones[0]} of layer {place[0]} open"
            raise trouble("A602", message, path, ANEW)
    return {place: [own[group] for group in sorted(own)] for place, own in picks.items()}


def _candidate(unit: Unit, row: Setting, policy: Policy, units: Units) -> Candidate | None:
    """What a row says, with the budgets of all layers that matter to it; None where the spec has no such thing.

    Numbers may lie anywhere in their ranges, as far as the checker takes them.
    """
    alike = [one for one in unit.candidates if dict(one.choose) == row.words]
    own = {path for one in alike for path, _ in one.budgets}
    if not alike or not own.issuperset(row.budgets):
        return None
    numbers = {**{path: one for path, one in policy.budgets.items() if path in own}, **row.budgets}
    made = Candidate(tuple(row.words.items()), tuple(numbers.items()))
    return made if units.takes(made) else None


def check_sources(spec: Spec, path: Path | str) -> None:
    """Raises SpecError A604 for a layer that takes over a choice where no layer before it makes one."""
    made = False
    for layer in spec.layers:
        keys = [key for one in held(layer.mixer) for key in one.keys]
        own = any(makes_choice(key) for key in keys)
        if any(map(takes_choice, keys)) and not own and not made:
            message = f"layer {layer.index} takes over an earlier layer's choice, but none before it makes one"
            raise trouble("A604", message, path, "let an earlier layer choose for itself")
        made = made or any(makes_choice(kind) for kind, _ in kinds(layer.mixer))


def trouble(code: str, message: str, path: Path | str, help_line: str) -> SpecError:
    """An error about a file as a whole."""
    return SpecError([Diagnostic(code, message, Span(Source(str(path), ""), 0, 0), help=help_line)])
