"""What a mixer stands in while it is lowered: the model, its attributes, the settings and blocks around it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from attnc.compiler.attributes import Attributes
from attnc.compiler.model_settings import Given
from attnc.compiler.origin import origin
from attnc.compiler.overlay import resolve_attributes
from attnc.compiler.place import Place
from attnc.compiler.problems import Problems
from attnc.compiler.spec import Model
from attnc.compiler.value import Origin
from attnc.dsl import tree
from attnc.dsl.source import Span


@dataclass(frozen=True)
class Scope:
    """The model, its attributes, the settings around (outermost first), and the words of the blocks around."""

    model: Model
    inherited: Given
    place: Place
    settings: tuple[Given, ...] = ()
    inside: tuple[str, ...] = ()
    resolved: dict[tuple[bool, tuple[int, ...]], Attributes] = field(default_factory=dict)
    made: list[Given] = field(default_factory=list)
    """Settings that lowering has made, which must live as long as what knows them by their identity."""
    origins: dict[int, Origin] = field(default_factory=dict)
    """What was found before: a mix may be used in many places."""

    @property
    def problems(self) -> Problems:
        """Where mistakes go."""
        return self.place.problems

    def attributes(self, keys: bool, span: Span) -> Attributes | None:
        """The attributes that hold here; `keys`: for a key set."""
        key = keys, tuple(map(id, self.settings))
        if key not in self.resolved:
            found = resolve_attributes(self.model, self.inherited, self.settings, keys, span, self.problems)
            if found is None:
                return None
            self.resolved[key] = found
        return self.resolved[key]

    def origin(self, node: tree.Expression) -> Origin:
        """Where a piece of the file stands."""
        if id(node) not in self.origins:
            self.origins[id(node)] = origin(node)
        return self.origins[id(node)]

    def kept(self, settings: Given) -> Given:
        """Settings that no file holds, kept for as long as `resolved` is."""
        self.made.append(settings)
        return settings

    def within(self, word: str) -> Scope:
        """The scope inside a block."""
        return replace(self, inside=(*self.inside, word))

    def under(self, settings: Given) -> Scope:
        """The scope inside braces of settings."""
        return replace(self, settings=(*self.settings, settings))
