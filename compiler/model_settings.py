"""The `model { }` of a spec: its own settings, and the attributes that are every mixer's default."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from attnc.compiler.advice import about_key
from attnc.compiler.attributes import Attributes
from attnc.compiler.declare import Bounds, Positional
from attnc.compiler.fields import expectation, fields
from attnc.compiler.place import INVALID, Place
from attnc.compiler.problems import one_of
from attnc.compiler.read_value import read
from attnc.compiler.spec import FeedForward, Model, Norm
from attnc.compiler.value import Value
from attnc.dsl import tree
from attnc.dsl.source import Span

Width = Annotated[int, Positional(), Bounds(1, 2**20)]
Epsilon = Annotated[float, Positional(), Bounds(0, 1)]


class Swiglu(Value):
    """`swiglu(5632)`."""

    word: Literal["swiglu"] = "swiglu"
    n: Width


class Geglu(Value):
    """`geglu(9216)`."""

    word: Literal["geglu"] = "geglu"
    n: Width


class Gelu(Value):
    """`gelu(3072)`."""

    word: Literal["gelu"] = "gelu"
    n: Width


class Relu(Value):
    """`relu(8192)`."""

    word: Literal["relu"] = "relu"
    n: Width


class Rms(Value):
    """`rms(1e-6, centre = 1)`."""

    word: Literal["rms"] = "rms"
    eps: Epsilon
    centre: Literal[0, 1] = 0


class LayerNorm(Value):
    """`layer(1e-5)`."""

    word: Literal["layer"] = "layer"
    eps: Epsilon


class ModelSettings(Value):
    """Settings of `model` that no mixer inherits, with their bounds."""

    vocab: Annotated[int, Bounds(1, 2**24)]
    dim: Annotated[int, Bounds(1, 65536)]
    layers: Annotated[int, Bounds(1, 1024)]
    context: Annotated[int | None, Bounds(1, 2**24)] = None
    ffn: Swiglu | Geglu | Gelu | Relu | None
    norm: Rms | LayerNorm
    norm_place: Literal["pre", "sandwich"] = "pre"
    tie: bool = False
    bias: Literal["qkv", "all"] | None = None
    embedding_scale: Annotated[float, Bounds(-1e6, 1e6)] = 1.0
    residual_scale: Annotated[float, Bounds(-1e6, 1e6)] = 1.0
    logit_scale: Annotated[float, Bounds(-1e6, 1e6)] = 1.0
    logit_cap: Annotated[float | None, Bounds(1e-6, 1e6)] = None
    score_cap: Annotated[float | None, Bounds(1e-6, 1e6)] = None
    score_scale: Annotated[float | None, Bounds(1e-6, 1e6)] = None


Given = dict[str, tuple[Any, Span]]
"""Settings as read: key -> typed value (INVALID after a mistake) and where it is written."""

REQUIRED_ATTRIBUTE = "heads"
SHOWN = {
    "vocab": "vocab = 32000",
    "dim": "dim = 2048",
    "layers": "layers = 24",
    "heads": "heads = 16",
    "ffn": "ffn = swiglu(5632)",
    "norm": "norm = rms(1e-6)",
}
"""What a model of a usual size says."""


def read_model(item: tree.Model, place: Place) -> tuple[Model | None, Given]:
    """The model, or None after a mistake in it, and the attributes that it gives every mixer."""
    declared = {**fields(ModelSettings), **fields(Attributes)}
    given: Given = {}
    misspelt: set[str | None] = set()
    for setting in item.settings:
        key = setting.key.text
        if key in declared:
            given[key] = (read(setting.value, declared[key], "model", place.at("model")), setting.span)
        else:
            message = f"`model` has no setting `{key}`"
            advice = about_key(key, declared, [one.key.text for one in item.settings])
            expected = one_of(declared, "a setting of the model")
            place.problems.add("A102", message, setting.key.span, expected, advice.help, fix=advice.fix)
            misspelt.add(advice.fix)
    missing = [f.key for f in fields(ModelSettings).values() if f.required and f.key not in given]
    missing += [REQUIRED_ATTRIBUTE] * (REQUIRED_ATTRIBUTE not in given)
    for key in (key for key in missing if key not in misspelt):
        message = f"`model` does not say `{key}`"
        help_line = f"add `{SHOWN[key]}`, or what the model has"
        place.problems.add("A105", message, item.name.span, f"`{key}`: {expectation(declared[key])}", help_line)
    inherited = {key: given[key] for key in given if key in fields(Attributes)}
    own = {field.key: given[field.key][0] for field in fields(ModelSettings).values() if field.key in given}
    if missing or any(value is INVALID for value in own.values()):
        return None, inherited
    settings = ModelSettings(**own)
    return _model(item.name.text, settings), inherited


def _model(name: str, settings: ModelSettings) -> Model:
    ffn, norm = settings.ffn, settings.norm
    plain = {key: value for key, value in vars(settings).items() if key not in ("ffn", "norm")}
    return Model(
        name=name,
        feed_forward=None if ffn is None else FeedForward(kind=ffn.word, width=ffn.n),
        norm=Norm(kind=norm.word, epsilon=norm.eps, centre=norm.centre if isinstance(norm, Rms) else 0),
        **plain,
    )
