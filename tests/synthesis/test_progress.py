"""What long work shows where stderr is no terminal."""

from __future__ import annotations

from mmkd.synthesis import progress


def test_a_log_gets_a_line_now_and_then(monkeypatch, capsys):
    seconds = iter(range(0, 10_000, 25))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    done = []
    assert list(progress.followed(iter(range(6)), "asking", 6, lambda: f"{len(done)} done")) == [*range(6)]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" · ")[:2] for line in lines] == [["asking 3/6", "0 done"], ["asking 6/6", "0 done"]]


def test_a_line_has_the_time_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0)
    list(progress.followed(range(2000), "asking", 4000))
    [first, *_, last] = capsys.readouterr().err.splitlines()
    assert first == "asking 1/4,000"
    assert last.startswith("asking 2,000/4,000 · ")
    assert last.endswith(" min left")


def test_short_work_says_nothing_and_a_count_may_be_unknown(monkeypatch, capsys):
    list(progress.followed(range(10), "asking", 10))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "EVERY", 0)
    list(progress.followed(range(1), "asking", None))
    assert capsys.readouterr().err == "asking 1\n"
