"""Draw the rooms and their arrows into docs/architecture.md, from the imports: python scripts/draw_rooms.py.

Transitive arrows are left out: what `train` reaches through `runs` is not drawn again.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from rooms import ROOMS, graph, room  # noqa: E402

PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms: drawn by scripts/draw_rooms.py -->", "<!-- end of rooms -->"


def arrows() -> dict[str, set[str]]:
    """Collect room -> imported rooms, without `errors`, which every room imports."""
    found: dict[str, set[str]] = {name: set() for name in ROOMS if name != "errors"}
    for module, others in graph().items():
        here = room(module)
        if here in found:
            found[here] |= {there for m in others if (there := room(m)) in found and there != here}
    return found


def reach(name: str, found: dict[str, set[str]]) -> set[str]:
    """Collect all rooms reachable from a room."""
    return set().union(found[name], *(reach(other, found) for other in found[name]))


def drawing() -> str:
    """Draw the rooms as a Mermaid flow chart."""
    found = arrows()
    lines = ["```mermaid", "flowchart TD"]
    lines += [f'  {name}["<b>{name}</b><br>{ROOMS[name]}"]' for name in found]
    for name, others in found.items():
        implied = set().union(*(reach(other, found) for other in others)) if others else set()
        lines += [f"  {name} --> {other}" for other in sorted(others - implied)]
    return "\n".join([*lines, "```"])


def page(text: str) -> str:
    """Replace the drawing in the page."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{drawing()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
