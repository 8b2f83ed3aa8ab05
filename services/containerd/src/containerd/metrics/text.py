"""The text format that Prometheus reads (exposition format 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["CONTENT_TYPE", "Family", "render"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass
class Family:
    """All samples of one name. ``type`` is ``counter``, ``gauge`` or ``histogram``.

    A sample is (suffix of the name, labels, value); the suffix is for the parts of a histogram.
    """

    name: str
    help: str
    type: str = "gauge"
    samples: list[tuple[str, Mapping[str, str], float]] = field(default_factory=list)

    def add(self, value: float, labels: Mapping[str, str] | None = None, suffix: str = "") -> Family:
        """Add a sample and return the family."""
        self.samples.append((suffix, labels or {}, value))
        return self


def render(families: Iterable[Family]) -> str:
    """Return the families that have samples as text."""
    lines = []
    for family in families:
        if not family.samples:
            continue
        lines += [f"# HELP {family.name} {_escape(family.help)}", f"# TYPE {family.name} {family.type}"]
        for suffix, labels, value in family.samples:
            pairs = ",".join(f'{name}="{_escape(text, quoted=True)}"' for name, text in sorted(labels.items()))
            lines.append(
                f"{family.name}{suffix}{{{pairs}}} {_number(value)}"
                if pairs
                else f"{family.name}{suffix} {_number(value)}"
            )
    return "".join(f"{line}\n" for line in lines)


def _escape(text: str, *, quoted: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quoted else text


def _number(value: float) -> str:
    """An integer is written whole, however large: limits are near the end of 64 bits."""
    if isinstance(value, int) or value.is_integer():
        return str(int(value))
    return repr(value)
