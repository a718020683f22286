"""What a command costs: its time, the memory of it and its children together, its exit status."""

import sys

import pytest

from benchmarks import measure
from benchmarks.measure import run_measured


def test_memory_of_parent_and_child_is_added(monkeypatch):
    monkeypatch.setattr(measure, "INTERVAL_S", 0.1)
    hold = "import time; x = bytearray(b'1') * 100_000_000; "
    child = f"{hold} time.sleep(1.5)"
    parent = f"import subprocess, sys; {hold} subprocess.run([sys.executable, '-c', {child!r}])"
    cost = run_measured([sys.executable, "-c", parent])
    assert 0.2 < cost.peak_gb < 0.26
    assert 1.5 < cost.seconds < 10


def test_a_failing_command_ends_with_its_status():
    with pytest.raises(SystemExit) as caught:
        run_measured([sys.executable, "-c", "raise SystemExit(7)"])
    assert caught.value.code == 7
