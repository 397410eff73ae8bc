"""What every typed stage is made of: frozen values, shares of a length, and the place a value came from."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """A frozen, strict pydantic model; equality and hashing by content."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Share(Value):
    """`25%`: a part of something whose size is known only while running, mostly the sequence's length."""

    percent: float

    def of(self, length: int) -> int:
        """The share of `length`, rounded down, at least 1."""
        return max(1, int(length * self.percent / 100))

    def __str__(self) -> str:
        return f"{self.percent:g}%"


Tokens = int | Share


class Origin(Value):
    """The `.attn` line that a value comes from; `text` is printed from the tree, so it holds nothing of the file but checked words."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}  {self.text}"
