"""``holdfast bench-storage``."""

from __future__ import annotations

import click

from holdfast.cli.output import Output, command, size_text
from holdfast.storage.measuring import Figure


@command("bench-storage")
@click.argument("place", metavar="PLACE")
@click.option("--packs", type=click.IntRange(1, 64), default=8, show_default=True, help="Packs of 16 MiB to store.")
def bench_storage(out: Output, place: str, packs: int) -> int:
    """Measure how quick a storage is: latency, put, get, list.

    PLACE is an address as for --repo, of an empty place: what is stored there to measure is deleted again.
    """
    from holdfast.storage.measuring import measure

    storage = out.app.storage(place)
    out.line(f"{storage.place}")
    for figure in measure(storage, packs):
        out.event("figure", name=figure.name, value=figure.value, unit=figure.unit, count=figure.count)
        out.line(f"  {figure.name:24}{_text(figure):>14}")
    storage.close()
    return 0


def _text(figure: Figure) -> str:
    if figure.unit == "B/s":
        return f"{size_text(int(figure.value))}/s"
    if figure.unit == "s":
        return f"{figure.value * 1000:.1f} ms"
    return f"{figure.value:.0f} a second"
