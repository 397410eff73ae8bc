"""The class that joins several mixers of one layer: outputs added, gated, or one after the other."""

from __future__ import annotations

from attnc.codegen.parts import Names, Part, merged
from attnc.compiler.spec import Chain, Gate, Model, Sum
from attnc.compiler.walk import first_leaf


def combine(mixer: Sum | Chain | Gate, inner: list[Part], names: Names, model: Model) -> Part:
    """`inner`: the classes of the parts, in order; their launches take neighbouring slots."""
    modules, slot = [], 0
    chained = isinstance(mixer, Sum) and all(part.chained for part in inner)
    given = ", given" if chained else ""
    for name, part in zip(mixer.names, inner, strict=True):
        modules.append(f"self.{name} = {part.name}({'slot' if slot == 0 else f'slot + {slot}'})")
        slot += part.slots
    match mixer:
        case Sum():
            summary = f"Outputs added: {' + '.join(mixer.names)}." if len(inner) > 1 else f"{mixer.names[0]} alone."
            body = [f"return {' + '.join(f'self.{name}(x, call{given})' for name in mixer.names)}"]
        case Chain():
            summary = f"One reads the other: {' >> '.join(mixer.names)}."
            body = [*(f"x = self.{name}(x, call)" for name in mixer.names[:-1]), f"return self.{mixer.names[-1]}(x, call)"]
            if inner[-1].chained:
                first = [f"y = self.{mixer.names[0]}(x, call)", *(f"y = self.{name}(y, call)" for name in mixer.names[1:-1])]
                body = [*first, f"return self.{mixer.names[-1]}(y, call, x)  # its gate reads x"]
        case Gate():
            summary = f"Branches weighed by a gate: {', '.join(mixer.names)}."
            more, body = _gate(mixer, model)
            modules += [*_shared(mixer), *more]
    return Part(
        name=names.new([mixer.node], "Mixer"),
        place="mixer",
        template="combine.py.j2",
        summary=summary,
        modules=tuple(modules),
        body=tuple(body),
        slots=slot,
        chained=chained,
        needs=merged([{"layers": {"ProductGate"}}] if isinstance(mixer, Gate) and mixer.by == "product" else []),
    )


def _shared(mixer: Gate) -> list[str]:
    """Lines that let every branch use the first one's projections, as far as it has some of its own."""
    lines = []
    first, *others = mixer.names
    a = first_leaf(mixer.parts[0]).attributes
    for letter in mixer.shared:
        borrowed = (letter in "qk" and a.qk_from is not None) or (letter == "k" and a.share_qk)
        if not borrowed:
            lines += [f"self.{name}.{letter}_proj = self.{first}.{letter}_proj" for name in others]
    return lines


def _gate(mixer: Gate, model: Model) -> tuple[list[str], list[str]]:
    """(more lines of __init__, lines of forward)."""
    branches = [f"y_{name} = self.{name}(x, call)  # [T, W]" for name in mixer.names]
    if mixer.by == "product":
        norms = ", ".join(f'"{name}"' for name in mixer.names)
        outputs = ", ".join(f"y_{name}" for name in mixer.names)
        make = f"self.gate = ProductGate({model.dim}, {model.norm.epsilon!r}, ({norms}))"
        return [make], [*branches, f"return self.gate({outputs})  # the product of the normalised branches"]
    squash = "torch.sigmoid(self.gate(x))" if mixer.by == "sigmoid" else "torch.softmax(self.gate(x), dim=-1)"
    weighed = " + ".join(f"weights[:, {at}:{at + 1}] * y_{name}" for at, name in enumerate(mixer.names))
    make = f"self.gate = nn.Linear({model.dim}, {len(mixer.names)}, bias=False)"
    return [make], [*branches, f"weights = {squash}  # [T, branches]", f"return {weighed}"]
