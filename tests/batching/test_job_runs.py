"""Jobs from beginning to end: every row once and in its place, whatever ended them in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from batch_jobs import CONTEXT, Characters, Reverser, read_rows, run, write_rows
from disks import make_read_only, tmpfs

from helium_onnx.batching.engine import wanted_windows
from helium_onnx.batching.rows import Input
from helium_onnx.batching.work import Done, work_through
from helium_onnx.errors import BatchError, GenerationError, ResourceError, TextError
from helium_onnx.locking import exclusive_lock
from helium_onnx.progress import ProgressEvent

COUNT = 40


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_rows(tmp_path / "in.jsonl", COUNT)
    return tmp_path / "in.jsonl"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def job_of(output: Path) -> dict[str, Any]:
    job: dict[str, Any] = json.loads((output.parent / f"{output.name}.job.json").read_text())
    return job


class TestAWholeJob:
    def test_each_row_is_answered_in_its_place(self, source: Path, output: Path) -> None:
        model = Reverser()
        report = run(source, output, model)
        assert (report.rows, report.new_rows, report.bad_rows) == (COUNT, COUNT, 0)
        given = [json.loads(line) for line in source.read_text().splitlines() if line]
        for row, found in zip(given, read_rows(output), strict=True):
            assert found.pop("beside")
            assert found == {**row, "answer": row["text"][::-1]}
        assert model.rows == list(range(COUNT))
        assert model.closed

    def test_windows_are_sorted_by_length_into_batches(self, source: Path, output: Path) -> None:
        model = Reverser()
        run(source, output, model)
        assert any(batch != sorted(batch) for batch in model.batches)
        assert max(len(batch) for batch in model.batches) == 3
        assert [max(batch) // 7 for batch in model.batches] == sorted(max(batch) // 7 for batch in model.batches)

    def test_rows_as_they_come_have_their_line(self, source: Path, output: Path) -> None:
        run(source, output, ordered=False)
        found = read_rows(output)
        lines = [row["line"] for row in found]
        assert lines != sorted(lines)
        given = source.read_text().splitlines()
        assert {row["id"]: row["line"] for row in found} == {
            json.loads(line)["id"]: number for number, line in enumerate(given, 1) if line
        }

    def test_what_the_job_was_stays_beside_the_output(self, source: Path, output: Path) -> None:
        run(source, output)
        job = job_of(output)
        assert job["finished"] is True
        assert job["bundle"] == "d1"
        assert job["input"]["rows"] == COUNT and job["input"]["lines"] == COUNT + 8
        assert sorted(path.name for path in output.parent.iterdir()) == ["in.jsonl", "out.jsonl", "out.jsonl.job.json"]

    def test_progress_counts_rows(self, source: Path, output: Path) -> None:
        events: list[ProgressEvent] = []
        run(source, output, progress=events.append)
        done = [event.done for event in events if event.unit == "rows"]
        assert done == sorted(done) and done[-1] == COUNT
        assert {event.total for event in events if event.unit == "rows"} == {COUNT}

    def test_memory_holds_a_window(self, tmp_path: Path, output: Path) -> None:
        import tracemalloc

        with (tmp_path / "large.jsonl").open("w") as file:
            for i in range(8000):
                file.write(json.dumps({"id": i, "text": "x" * 20, "more": "y" * 1000}) + "\n")
        tracemalloc.start()
        try:
            run(tmp_path / "large.jsonl", output)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert output.stat().st_size > 8_000_000
        assert peak < 2_000_000


class TestResume:
    @pytest.fixture
    def whole(self, source: Path, tmp_path: Path) -> bytes:
        run(source, tmp_path / "whole.jsonl")
        return (tmp_path / "whole.jsonl").read_bytes()

    def test_a_job_killed_at_any_byte_ends_as_if_nothing_had_been(
        self, source: Path, output: Path, whole: bytes
    ) -> None:
        run(source, output)
        job = output.with_name("out.jsonl.job.json")
        begun = json.dumps({**json.loads(job.read_text()), "finished": False})
        for size in [*range(0, len(whole), 13), len(whole) - 1, len(whole)]:
            output.write_bytes(whole[:size])
            job.write_text(begun)
            model = Reverser()
            report = run(source, output, model, resume=True)
            assert output.read_bytes() == whole
            there = whole[:size].count(b"\n")
            assert report.new_rows == COUNT - there
            # Nothing runs again but the neighbours of a row that is missing.
            assert all(max(batch) >= there for batch in model.batches)
            assert job_of(output)["finished"] is True

    def test_the_same_without_order(self, source: Path, output: Path, tmp_path: Path) -> None:
        run(source, tmp_path / "whole.jsonl", ordered=False)
        whole = (tmp_path / "whole.jsonl").read_bytes()
        rows = sorted(whole.splitlines())
        run(source, output, ordered=False)
        for size in range(0, len(whole), 41):
            output.write_bytes(whole[:size])
            model = Reverser()
            run(source, output, model, ordered=False, resume=True)
            assert output.read_bytes().startswith(whole[: whole[:size].rfind(b"\n") + 1])
            assert sorted(output.read_bytes().splitlines()) == rows
            assert len(model.rows) <= COUNT - whole[:size].count(b"\n") + 2

    def test_a_hole_that_a_stopped_machine_left(self, source: Path, output: Path, whole: bytes) -> None:
        run(source, output)
        middle = whole.index(b"\n", len(whole) // 2) + 1
        output.write_bytes(whole[:middle] + b"\0" * 50 + whole[middle + 50 :])
        run(source, output, resume=True)
        assert output.read_bytes() == whole

    def test_a_finished_job_has_nothing_to_do(self, source: Path, output: Path, whole: bytes) -> None:
        run(source, output)
        model = Reverser()
        report = run(source, output, model, resume=True)
        assert (report.rows, report.new_rows) == (COUNT, 0)
        assert model.batches == []
        assert output.read_bytes() == whole

    def test_without_an_output_it_begins(self, source: Path, output: Path, whole: bytes) -> None:
        run(source, output, resume=True)
        assert output.read_bytes() == whole
        output.unlink()  # the job file that is left says nothing
        run(source, output, digest="d2")
        assert job_of(output)["bundle"] == "d2"

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"digest": "d2"}, 'bundle was "d1", is now "d2"'),
            ({"task": "text-generation"}, 'task was "text-classification", is now "text-generation"'),
            ({"options": {"top_k": 2}}, "options top_k was 1, is now 2"),
            ({"reports": True}, 'rows bad_rows was "stop", is now "report"'),
            ({"ordered": False}, "rows ordered was true, is now false"),
            ({"load_options": {"kernels": "native"}}, 'rows kernels was null, is now "native"'),
            ({"context_length": 50}, "rows context_length was null, is now 50"),
        ],
        ids=str,
    )
    def test_another_job_is_refused(
        self, changes: dict[str, Any], words: str, source: Path, output: Path, whole: bytes
    ) -> None:
        run(source, output)
        output.write_bytes(whole[:300])
        with pytest.raises(BatchError, match="is the output of another job") as caught:
            run(source, output, resume=True, **changes)
        assert words in (caught.value.found or "")
        assert output.read_bytes() == whole[:300]
        run(source, output, resume=True, load_options={"threads": 3})  # threads are no part of it
        assert output.read_bytes() == whole

    @pytest.mark.parametrize("change", ["edited", "longer", "blank line"])
    def test_another_input_is_refused(self, change: str, source: Path, output: Path, whole: bytes) -> None:
        run(source, output)
        output.write_bytes(whole[:300])
        text = source.read_text()
        source.write_text(
            {
                "edited": text.replace('"n": 39', '"n": 40'),
                "longer": text + '{"text": "a"}\n',
                "blank line": "\n" + text,
            }[change]
        )
        with pytest.raises(BatchError, match="another job") as caught:
            run(source, output, resume=True)
        assert "input" in (caught.value.found or "")

    def test_a_copy_of_the_input_will_do(self, source: Path, output: Path, whole: bytes, tmp_path: Path) -> None:
        run(source, output)
        output.write_bytes(whole[:300])
        copy = tmp_path / "copy.jsonl"
        copy.write_bytes(source.read_bytes())
        run(copy, output, resume=True)
        assert output.read_bytes() == whole

    @pytest.mark.parametrize("ordered", [True, False])
    @pytest.mark.parametrize("change", ["row lost", "row twice", "row edited", "row more"])
    def test_an_output_that_somebody_changed_is_refused(
        self, change: str, ordered: bool, source: Path, output: Path
    ) -> None:
        run(source, output, ordered=ordered)
        rows = output.read_bytes().splitlines(keepends=True)
        changed = {
            "row lost": rows[:4] + rows[5:],
            "row twice": [*rows[:4], rows[3], *rows[4:]],
            "row edited": [*rows[:4], b'{"x": 1}\n', *rows[5:]],
            "row more": [*rows, b'{"line": 999}\n'],
        }[change]
        output.write_bytes(b"".join(changed))
        if change == "row lost" and not ordered:
            run(source, output, ordered=False, resume=True)  # it is one that is missing
            assert sorted(output.read_bytes().splitlines(keepends=True)) == sorted(rows)
            return
        with pytest.raises(BatchError, match="was changed since its job stopped"):
            run(source, output, ordered=ordered, resume=True)
        assert output.read_bytes() == b"".join(changed)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (None, "has no job file"),
            ("", "cannot be read"),
            ("{}", "no job file that this helium-onnx reads"),
            ('{"format_version": 2}', "no job file that this helium-onnx reads"),
            ("[]", "no job file that this helium-onnx reads"),
            ('{"format_version": 1, "bundle": 3}', "is damaged"),
        ],
    )
    def test_a_job_file_that_is_none(self, text: str | None, words: str, source: Path, output: Path) -> None:
        run(source, output)
        job = output.with_name("out.jsonl.job.json")
        job.unlink() if text is None else job.write_text(text)
        with pytest.raises(BatchError, match=words):
            run(source, output, resume=True)
        run(source, output, force=True)

    def test_interrupted_in_the_middle(self, source: Path, output: Path, whole: bytes) -> None:
        def stop(number: int) -> None:
            if number == 7:
                raise KeyboardInterrupt

        model = Reverser(stop)
        with pytest.raises(KeyboardInterrupt):
            run(source, output, model)
        assert model.closed
        there = output.read_bytes()
        assert 0 < len(there) < len(whole) and whole.startswith(there) and there.endswith(b"\n")
        run(source, output, resume=True)
        assert output.read_bytes() == whole

    def test_a_drawn_seed_stays_with_the_job(self, source: Path, output: Path, whole: bytes) -> None:
        options = {"temperature": 1.0, "seed": None}
        run(source, output, options=options)
        seed = job_of(output)["options"]["seed"]
        assert isinstance(seed, int)
        output.write_bytes(whole[:300])
        run(source, output, options=options, resume=True)
        assert job_of(output)["options"]["seed"] == seed
        with pytest.raises(BatchError, match="another job"):
            run(source, output, options={**options, "seed": seed + 1}, resume=True)


class TestRefusals:
    def test_an_output_that_is_there(self, source: Path, output: Path) -> None:
        output.write_text("precious\n")
        with pytest.raises(BatchError, match="is there already"):
            run(source, output)
        assert output.read_text() == "precious\n"
        run(source, output, force=True)
        assert len(read_rows(output)) == COUNT

    def test_force_keeps_the_old_output_until_the_input_is_known_to_be_good(self, source: Path, output: Path) -> None:
        output.write_text("precious\n")
        source.write_text("nonsense\n")
        with pytest.raises(TextError):
            run(source, output, force=True)
        assert output.read_text() == "precious\n"

    def test_places_that_are_no_output(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(BatchError, match="there is no folder"):
            run(source, tmp_path / "missing/out.jsonl")
        with pytest.raises(BatchError, match="cannot be the output"):
            run(source, tmp_path)
        with pytest.raises(BatchError, match="cannot be the output"):
            run(source, Path("/dev/null"), force=True)
        with pytest.raises(BatchError, match="is the input"):
            run(source, source, force=True)
        (tmp_path / "link").symlink_to(source)
        with pytest.raises(BatchError, match="is the input"):
            run(source, tmp_path / "link", force=True)

    def test_two_jobs_at_once(self, source: Path, output: Path) -> None:
        with exclusive_lock(output), pytest.raises(BatchError, match="is being written by another job"):
            run(source, output)

    def test_a_bad_row_stops_before_the_model_is_loaded(self, source: Path, output: Path) -> None:
        lines = source.read_text().splitlines()
        lines[45] = '{"id": "bad"}'
        source.write_text("\n".join(lines))
        model = Reverser()
        with pytest.raises(TextError, match=r"in\.jsonl, line 46 cannot be used"):
            run(source, output, model)
        assert model.batches == []
        assert list(output.parent.iterdir()) == [source]

    def test_a_text_that_does_not_fit(self, source: Path, output: Path) -> None:
        with source.open("a") as file:
            file.write(json.dumps({"text": "x" * (CONTEXT + 1)}))
        with pytest.raises(TextError, match="line 49") as caught:
            run(source, output)
        assert "does not fit the context, found 101, expected 100" in (caught.value.found or "")

    def test_bad_rows_can_be_reported(self, source: Path, output: Path) -> None:
        lines = source.read_text().splitlines()
        lines[3], lines[20], lines[45] = "nonsense", '{"id": 5}', json.dumps({"id": 6, "text": "x" * 101})
        source.write_text("\n".join(lines))
        report = run(source, output, reports=True)
        assert (report.rows, report.new_rows, report.bad_rows) == (COUNT, COUNT, 3)
        rows = read_rows(output)
        assert rows[3].keys() == {"error"} and rows[3]["error"].startswith("not JSON")
        bad = [row for row in rows if "error" in row]
        assert [row.get("id") for row in bad] == [None, 5, 6]
        whole = output.read_bytes()
        for size in range(0, len(whole), 97):
            output.write_bytes(whole[:size])
            run(source, output, reports=True, resume=True)
            assert output.read_bytes() == whole

    @pytest.mark.parametrize("text", ["", "\n\n", " \r\n"])
    def test_an_input_without_rows(self, text: str, source: Path, output: Path) -> None:
        source.write_text(text)
        with pytest.raises(TextError, match="has no rows"):
            run(source, output)

    def test_an_input_that_changes_while_it_is_read(self, source: Path, output: Path) -> None:
        def grow(_number: int) -> None:
            with source.open("a") as file:
                file.write('{"text": "late"}\n')

        with pytest.raises(BatchError, match="was changed while it was read"):
            run(source, output, Reverser(grow))
        assert job_of(output)["finished"] is False

    def test_an_answer_that_is_no_number(self, source: Path, output: Path) -> None:
        model = Reverser()
        model.run = lambda rows: [{"answer": float("nan")} for _ in rows]  # type: ignore[method-assign]
        with pytest.raises(GenerationError, match="no usable result"):
            run(source, output, model)
        assert output.read_bytes() == b""


class TestDisks:
    def test_a_full_disk_leaves_whole_rows(self, source: Path, tmp_path: Path) -> None:
        run(source, tmp_path / "whole.jsonl")
        whole = (tmp_path / "whole.jsonl").read_bytes()
        with tmpfs(tmp_path / "disk", "size=20k"):
            output = tmp_path / "disk/out.jsonl"
            ballast = tmp_path / "disk/ballast"
            ballast.write_bytes(b"x" * 8192)
            with pytest.raises(ResourceError, match="has no room") as caught:
                run(source, output)
            assert "--resume" in (caught.value.remedy or "")
            there = output.read_bytes()
            assert whole.startswith(there) and (not there or there.endswith(b"\n")) and len(there) < len(whole)
            ballast.unlink()
            run(source, output, resume=True)
            assert output.read_bytes() == whole

    def test_a_folder_that_cannot_be_written(self, source: Path, tmp_path: Path) -> None:
        with tmpfs(tmp_path / "disk", "size=64k"):
            make_read_only(tmp_path / "disk")
            with pytest.raises(BatchError, match="cannot be written"):
                run(source, tmp_path / "disk/out.jsonl")


class TestWorkersElsewhere:
    """What comes from other processes may come late, twice, or not at all."""

    class Elsewhere:
        def __init__(self, deliveries: Any) -> None:
            self._deliveries = deliveries

        def results(self, source: Input, work: Any, state: Any) -> Any:
            rows: list[list[Done]] = []
            for window in wanted_windows(source, work, state):
                rows += work_through(window, work, Characters(), Reverser)
            return iter(self._deliveries(rows))

    @pytest.mark.parametrize("ordered", [True, False])
    def test_rows_that_come_late_and_twice(self, ordered: bool, source: Path, output: Path, tmp_path: Path) -> None:
        run(source, tmp_path / "whole.jsonl", ordered=ordered)
        twice = self.Elsewhere(lambda rows: [*reversed(rows), *rows])
        report = run(source, output, workers=twice, ordered=ordered)
        assert report.new_rows == COUNT
        expected, found = ((tmp_path / name).read_bytes().splitlines() for name in ("whole.jsonl", "out.jsonl"))
        assert found == expected if ordered else sorted(found) == sorted(expected)

    @pytest.mark.parametrize("ordered", [True, False])
    def test_a_row_that_does_not_come_is_an_error(self, ordered: bool, source: Path, output: Path) -> None:
        with pytest.raises(BatchError, match="rows are missing"):
            run(source, output, workers=self.Elsewhere(lambda rows: rows[:-1]), ordered=ordered)
        assert job_of(output)["finished"] is False
