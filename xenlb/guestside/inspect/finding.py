"""What is not as a guest needs it, as the operator reads it. Who finds it: verify.py."""

from dataclasses import dataclass

APPLY = "xenlb guest apply puts it right"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """`message`: what was found, what is wanted, and what it does; `hint`: what to do."""

    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})"
