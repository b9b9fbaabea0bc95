"""How progress is shown."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from helium_onnx.progress import ProgressEvent
from helium_onnx.terminal import BarProgress, PlainProgress, duration, size


class TestProgress:
    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(0.04, "0.0 s"), (9.96, "10 s"), (99.4, "99 s"), (119.7, "2 min 00 s"), (3725, "62 min 05 s")],
    )
    def test_duration(self, seconds: float, text: str) -> None:
        assert duration(seconds) == text

    @pytest.mark.parametrize(
        ("count", "text"), [(512, "0.5 kB"), (4_813_248, "4.81 MB"), (542e6, "542 MB"), (4.34e9, "4.34 GB")]
    )
    def test_size(self, count: float, text: str) -> None:
        assert size(count) == text

    def test_plain_lines_come_every_tenth_and_at_most_each_second(self) -> None:
        lines: list[str] = []
        now = [0.0]
        progress = PlainProgress(lines.append, clock=lambda: now[0])
        for done in range(0, 1001, 5):
            progress(ProgressEvent("weights", "a", done * 10**6, 10**9))
            now[0] += 0.041
        assert [line.split()[1] for line in lines] == ["10", "20", "30", "50", "60", "70", "80", "100"]
        assert lines[0] == "weights: 10 % of 1 GB, 122 MB/s, 7.2 s left"
        assert lines[-1] == "weights: 100 % of 1 GB, 122 MB/s"

    def test_the_bar_fits_80_columns(self) -> None:
        console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
        now = [0.0]
        display = BarProgress(console, keep=True, clock=lambda: now[0])
        name = "model.layers.23.post_attention_layernorm.weight"
        display(ProgressEvent("weights", name, 0, 4_340_000_000))
        now[0] = 10.0
        display(ProgressEvent("weights", name, 1_900_000_000, 4_340_000_000))
        console.print(display._draw())
        bar, item = console.file.getvalue().splitlines()
        assert len(bar.rstrip()) <= 77
        assert "weights" in bar
        assert "43 %  1.9 GB of 4.34 GB  190 MB/s  13 s left" in bar
        assert item.strip() == name
