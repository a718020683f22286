import os

from core.cores import available_cores


def test_cores_of_the_process_or_where_they_are_not_known_of_the_machine(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {1, 5, 6}, raising=False)
    assert available_cores() == 3
    monkeypatch.delattr("os.sched_getaffinity")  # macOS, Windows
    assert available_cores() == os.cpu_count()
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert available_cores() == 1
