"""A difference between what a guest has and what it needs, as the operator reads it."""

from dataclasses import dataclass

APPLY = "xenlb guest apply corrects it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """`message`: the state, the wanted state and the consequence; `hint`: what to do."""

    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})"
