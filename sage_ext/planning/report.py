"""What ``sage_ext.plan`` returns: a table, a dict and a picture of an optimizer's costs beside AdamW's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sage_ext.planning.budget import Budget


@dataclass(frozen=True)
class Plan:
    """The costs of an optimizer and of AdamW on one device, the one that has most. ``print`` it."""

    model: str
    """Its name, or its class."""
    precision: str
    """Of parameters and gradients."""
    mesh: tuple[int, ...]
    """How many devices there are along each of its dimensions; empty for a single one."""
    layout: str
    """The same in words."""
    hardware: str
    """What the devices are."""
    device_bytes: int | None
    """Memory of a device; None where that is not known."""
    chosen: Budget
    """Costs of the optimizer that was asked for."""
    adamw: Budget
    """Torch's AdamW in bytes, with both moments in float32. Beside 16-bit parameters its fused kernels keep
    them in 16 bits, where a second moment can vanish or stop decaying; with moments of that kind its state is
    half as large."""

    @property
    def numel(self) -> int:
        """Parameters of the whole model that are trained."""
        return sum(group.numel for group in self.chosen.groups)

    @property
    def fits(self) -> bool | None:
        """Whether what the plan knows of fits into a device; None where its memory is not known."""
        return None if self.device_bytes is None else self.chosen.peak_bytes <= self.device_bytes

    def as_dict(self) -> dict[str, Any]:
        """Return everything, in bytes and seconds, as JSON takes it."""
        return {
            "model": self.model,
            "parameters": self.numel,
            "precision": self.precision,
            "mesh": list(self.mesh),
            "layout": self.layout,
            "hardware": self.hardware,
            "device_bytes": self.device_bytes,
            "fits": self.fits,
            "optimizer": self.chosen.as_dict(),
            "adamw": self.adamw.as_dict(),
        }

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Draw memory and time of both into a file, of the kind that its name ends on (``.png``, ``.svg``).

        Args:
            path: of the file; one that is there is written over.

        Raises:
            ImportError: there is no matplotlib.
        """
        from sage_ext.planning.picture import draw

        draw(self, path)

    def __str__(self) -> str:
        rows = [("", self.chosen.name, self.adamw.name, ""), *self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            f"{self.model}: {count(self.numel)} parameters in {self.precision}, {self.layout}",
            f"{self.hardware}",
            "",
        ]
        for label, *cells in rows:
            text = "  ".join(
                [label.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))]
            )
            lines.append(text.rstrip())
        lines += ["", *self._notes()]
        return "\n".join(lines)

    def _rows(self) -> Iterator[tuple[str, str, str, str]]:
        ours, adamw = self.chosen, self.adamw
        for label, name in (("parameters", "parameter_bytes"), ("gradients", "gradient_bytes")):
            yield self._row(label, getattr(ours, name), getattr(adamw, name))
        yield self._row("state", ours.state_bytes, adamw.state_bytes)
        for group in ours.groups:
            where = f" ({group.role})" if group.role else ""
            yield f"  {group.rule}{where}", size(group.state_bytes), "", ""
        yield self._row("transient in a step", ours.transient_bytes, adamw.transient_bytes)
        yield self._row("peak in a step", ours.peak_bytes, adamw.peak_bytes)
        if self.device_bytes is not None:
            shares = [f"{budget.peak_bytes / self.device_bytes:.1%}" for budget in (ours, adamw)]
            yield "  of the device's memory", shares[0], shares[1], ""
        yield self._row("moved in memory a step", ours.moved_bytes, adamw.moved_bytes)
        yield "messages a step", f"{ours.messages:,}", f"{adamw.messages:,}", ""
        yield self._row("sent a step", ours.sent_bytes, adamw.sent_bytes)
        if ours.memory_seconds is not None and adamw.memory_seconds is not None:
            yield self._row("predicted: memory", ours.memory_seconds, adamw.memory_seconds, time)
            if ours.exchange_seconds is not None and adamw.exchange_seconds is not None:
                yield self._row("predicted: messages", ours.exchange_seconds, adamw.exchange_seconds, time)
            if ours.seconds is not None and adamw.seconds is not None:
                yield self._row("predicted: step", ours.seconds, adamw.seconds, time)

    def _row(self, label: str, ours: Any, adamw: Any, text: Any = None) -> tuple[str, str, str, str]:
        text = text or size
        share = ours / adamw if adamw else 1.0
        shown = "" if share == 1 or share > 10 else f"{share:.1%}" if share < 0.1 else f"{share:.0%}"
        return label, text(ours), text(adamw), shown

    def _notes(self) -> Iterator[str]:
        yield "Of one device, the one that has most. Not in it: activations, buffers, what FSDP2 gathers, and"
        yield "what allocators and libraries keep. AdamW has moments in fp32."
        if self.chosen.memory_seconds is None:
            yield "No time is predicted: give bandwidth, the memory's bytes a second."
        else:
            yield "Times are predicted from bandwidths and latencies, without launches and the host's time."


def count(number: int) -> str:
    """Return a number of parameters for a human."""
    for unit, power in (("B", 9), ("M", 6)):
        if number >= 10**power:
            return f"{number / 10**power:.2f} {unit}"
    return f"{number:,}"


def size(number: float) -> str:
    """Return bytes for a human."""
    if number < 1024:
        return f"{number:.0f} B"
    for unit, power in (("KiB", 1), ("MiB", 2), ("GiB", 3)):
        if number < 1024 ** (power + 1) or unit == "GiB":
            break
    return f"{number / 1024**power:.2f} {unit}"


def time(number: float) -> str:
    """Return seconds for a human."""
    if number < 1e-3:
        return f"{1e6 * number:.1f} us"
    return f"{1e3 * number:.2f} ms" if number < 1 else f"{number:.2f} s"
