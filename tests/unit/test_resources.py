"""What does not fit is refused before anything heavy, with the flags that would help."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from memedit.config.recipe import ModelKnobs, TargetKnobs
from memedit.editing import resources as preflight
from memedit.editing.resources import (
    Pace,
    TimeLeft,
    Work,
    bytes_text,
    check_room,
    check_weights,
    estimate_seconds,
    moment_bytes,
    weight_bytes,
)
from memedit.errors import ResourceError
from memedit.model.load import LanguageModel, load
from memedit.results.units import duration_text
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.machine import free_disk
from tests.conftest import ROOT

GPT2 = ROOT / "examples" / "models" / "made-gpt2"
CPU = ModelKnobs(device="cpu")


@pytest.fixture(scope="module")
def base() -> Checkpoint:
    return Checkpoint.open(GPT2)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load(GPT2, CPU)


def short(name: str, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    has: Callable[..., int] = lambda *_: count  # noqa: E731
    monkeypatch.setattr(preflight, name, has)


def test_weights_are_weighed_by_their_headers(base: Checkpoint) -> None:
    assert weight_bytes(base, CPU) == 4 * 6_727_424
    assert weight_bytes(base, ModelKnobs(device="cpu", dtype="bfloat16")) == 2 * 6_727_424


def test_weights_that_do_not_fit_are_refused_unread(base: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = weight_bytes(base, CPU)
    short("free_memory", monkeypatch, needed)
    check_weights(base, CPU)
    short("free_memory", monkeypatch, needed - 1)
    with pytest.raises(ResourceError, match=r"the weights take 26\.9 MB") as caught:
        check_weights(base, CPU)
    assert caught.value.exit_code == 5 and "--dtype bfloat16" in caught.value.hint
    check_weights(base, ModelKnobs(device="cpu", dtype="bfloat16"))
    # Each of several processes holds them.
    short("free_memory", monkeypatch, 3 * needed - 1)
    check_weights(base, CPU, 2)
    with pytest.raises(ResourceError, match=r"the weights take 80\.7 MB in 3 processes") as caught:
        check_weights(base, CPU, 3)
    assert caught.value.hint.startswith("start fewer processes")


def test_moments_that_do_not_fit_are_refused(
    base: Checkpoint, lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = moment_bytes([1536] * 3)
    assert needed == 8 * 8 * 1536**2
    short("free_memory", monkeypatch, needed)
    said = check_room(base.output_size(), tmp_path / "out", "auto", lm.architecture, (0, 1, 2), [0, 1, 2])
    disk = f"disk {bytes_text(base.output_size())} of output and 113.2 MB of cache"
    assert said == f"memory {bytes_text(needed)} beside the model, {disk}"
    short("free_memory", monkeypatch, needed - 1)
    with pytest.raises(ResourceError, match="3 layers of 1,536 units") as caught:
        check_room(base.output_size(), tmp_path / "out", "auto", lm.architecture, (0, 1, 2), [0, 1, 2])
    assert "--layers" in caught.value.hint
    # What the cache holds is not measured: a layer at a time is all that a solve needs.
    check_room(base.output_size(), tmp_path / "out", "auto", lm.architecture, (0, 1, 2), [])


def test_a_disk_that_is_too_small_is_refused(
    base: Checkpoint, lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short("free_disk", monkeypatch, base.output_size() - 1)
    with pytest.raises(ResourceError, match="its disk has") as caught:
        check_room(base.output_size(), tmp_path / "out", "auto", lm.architecture, (0, 1, 2), [])
    assert "--link hard" in caught.value.hint
    check_room(base.output_size(), tmp_path / "out", "hard", lm.architecture, (0, 1, 2), [])


def test_the_disk_of_a_folder_that_is_not_there_yet_is_its_parents(tmp_path: Path) -> None:
    assert free_disk(tmp_path / "a" / "b") == pytest.approx(free_disk(tmp_path), rel=0.1)


def test_time_grows_with_what_is_read_and_searched(lm: LanguageModel) -> None:
    pace = Pace(1.0)
    target = TargetKnobs(steps=40)

    def takes(layers: tuple[int, ...], **tokens: int) -> tuple[float, float]:
        return estimate_seconds(lm, layers, Work(**tokens), target, pace)

    assert takes((0, 1, 2)) == (0, 0)
    least, most = takes((0, 1, 2), read=1000)
    assert preflight.SLOWER * least == most > 500
    searched = 1000 * 0.5 * 3
    assert takes((0, 1, 2), searched=1000) == pytest.approx((searched * 4, searched * 20 * preflight.SLOWER))
    assert takes((5,), searched=1000) == (0, 0)  # nothing runs above the last block
    assert takes((5,), written=100, polished=10, scored=7)[0] == pytest.approx(100 * preflight.WRITTEN + 10 * 3 + 7)
    adam = estimate_seconds(lm, (0, 1, 2), Work(searched=1000), TargetKnobs(steps=40, optimizer="adam"), pace)
    assert adam[1] > takes((0, 1, 2), searched=1000)[1]


def test_what_is_left_is_corrected_by_the_phases_that_ended() -> None:
    left = TimeLeft({"moments": (100, 120), "targets": (40, 100), "polish": (300, 360), "after": (20, 24)})
    assert left.seconds == (460, 604)
    assert left.end("load", 30) is None and left.seconds == (460, 604)  # not among what was estimated
    assert left.end("moments", 0.1) == "about 6 to 8 min left"  # found in the cache: it says nothing of the speed
    assert left.end("targets", 140) == "about 11 to 13 min left"  # it took twice as long as it was to take
    assert left.seconds == (640, 768)
    assert left.end("targets", 140) is None  # a phase that comes again
    assert left.end("polish", 165) is None and left.seconds == pytest.approx((15.25, 18.3))  # little is left
    slow = TimeLeft({"targets": (1, 1), "polish": (300, 300)})
    slow.end("targets", 1000)
    assert slow.seconds == (1200, 1200)  # a single phase does not correct by more than four times


@pytest.mark.parametrize(("spent", "said"), [(0.2, "1 s"), (89, "89 s"), (600, "10 min"), (9000, "2.5 h")])
def test_times_are_said_as_people_say_them(spent: float, said: str) -> None:
    assert duration_text(spent) == said


def test_a_forward_that_other_programs_delay_does_not_set_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = iter([1.0, 50.0, 2.0])  # the first only initializes
    monkeypatch.setattr(preflight, "_forward_seconds", lambda _lm, _length: next(spent))
    assert Pace.of(load(GPT2, CPU)).token == 2.0 / preflight.TIMED[0]
