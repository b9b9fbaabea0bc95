"""A job from beginning to end, in this process or with workers that Ray starts.

The input is read twice: once to check every row before the model is loaded, and to know what is to be done; then window
by window. In memory are one window and its results, whatever the size of the file. Each output row is written once, in
the order of the input or as it comes; what is there when the process is killed is whole, and `resume` does the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from helium_onnx.batching.job import Job, job_path, read_job
from helium_onnx.batching.output import Output, Sink, recover_numbered, recover_ordered, write_error
from helium_onnx.batching.report import BatchReport
from helium_onnx.batching.rows import Input, Line, file_state, read_lines, read_row
from helium_onnx.batching.survey import Survey, survey
from helium_onnx.batching.tasks import Runner, TokenCounter, open_runner
from helium_onnx.batching.windows import windows
from helium_onnx.batching.work import Done, Work, work_through
from helium_onnx.batching.writing import RowWriter, Written
from helium_onnx.errors import BatchError, ExportError, TargetLockedError
from helium_onnx.locking import exclusive_lock
from helium_onnx.progress import ProgressCallback, ProgressEvent


class Workers(Protocol):
    """Where windows are worked through; ``results`` may give them in any order, and each several times."""

    def results(self, source: Input, work: Work, state: Written) -> Iterator[list[Done]]: ...


def run_job(
    source: Input,
    output: Path,
    work: Work,
    counter: TokenCounter,
    *,
    ordered: bool,
    resume: bool,
    force: bool,
    workers: Workers | None,
    progress: ProgressCallback,
    runner: Callable[[Work], Runner] | None = None,
) -> BatchReport:
    """Work through ``source`` into ``output``. ``runner`` makes the model's, in this process (tests give another).

    Raises:
        TextError: the input cannot be read, or has a row that cannot be used.
        BatchError: the output is there, or cannot be written or continued.
        And what the model raises; rows that were written by then stay.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        _lock(stack, source, output)
        earlier = _earlier(output, resume=resume, force=force)
        rows = {
            "format": "lines" if work.form.lines else "jsonl",
            "field": None if work.form.lines else work.form.field,
            "ordered": ordered,
            "bad_rows": "report" if work.reports else "stop",
            "drop_text": work.form.drop_text,
            "batch_tokens": work.limits.batch_tokens,
            "context_length": work.context_length,
            "kernels": work.load_options.get("kernels"),
        }
        job = Job(work.digest, work.task, work.options, rows, {})
        if earlier is not None:
            job = job.with_seed_of(earlier)
            job.check_goes_on(earlier, output)
        job = _seeded(job)
        work = replace(work, options=job.options)
        seen = survey(source, work.form, counter, reports=work.reports, progress=progress)
        job = replace(job, input=seen.identity())
        if earlier is not None:
            job.check_goes_on(earlier, output)
        else:
            _begin(output, job, force=force)
        file = stack.enter_context(closing(Output(output)))
        state, there = _recover(file, source, work, seen, ordered=ordered)
        new, bad = _run(source, work, counter, state, there, file, workers, runner, progress)
        file.sync()
        _finish(output, replace(job, finished=True))
    return BatchReport(seen.rows, new, bad, time.monotonic() - started)


def run_through(
    source: Input,
    sink: Sink,
    work: Work,
    counter: TokenCounter,
    *,
    progress: ProgressCallback,
    runner: Callable[[Work], Runner] | None = None,
) -> BatchReport:
    """Work through ``source`` into a sink that is no file: in order, and nothing can be resumed. Raises as run_job."""
    started = time.monotonic()
    work = replace(work, options=_seeded(Job(work.digest, work.task, work.options, {}, {})).options)
    seen = survey(source, work.form, counter, reports=work.reports, progress=progress)
    state = Written(seen, True, 0, bytearray())
    new, bad = _run(source, work, counter, state, 0, sink, None, runner, progress)
    return BatchReport(seen.rows, new, bad, time.monotonic() - started)


def _run(
    source: Input,
    work: Work,
    counter: TokenCounter,
    state: Written,
    there: int,
    sink: Sink,
    workers: Workers | None,
    runner: Callable[[Work], Runner] | None,
    progress: ProgressCallback,
) -> tuple[int, int]:
    """Do what is missing; the number of new rows, and of the bad ones among them."""
    missing = state.survey.rows - there
    if not missing:
        return 0, 0
    writer = RowWriter(sink, state)
    results = _Here(counter, runner, progress) if workers is None else workers
    if workers is not None:
        progress(ProgressEvent("start", "the workers"))
    bad = 0
    with closing(_as_generator(results.results(source, work, state))) as done:
        for rows in done:
            bad += writer.put(rows)
            progress(
                ProgressEvent(
                    work.task, f"{there + writer.count} of {state.survey.rows}", writer.count, missing, "rows"
                )
            )
    if writer.count != missing:
        raise BatchError(
            "rows are missing",
            found=f"{writer.count} of {missing}",
            expected="each row once",
            remedy="run the same command with --resume; if that does not help, please report it",
        )
    return writer.count, bad


class _Here:
    """The model in this process. It is loaded for the first batch that runs."""

    def __init__(
        self, counter: TokenCounter, runner: Callable[[Work], Runner] | None, progress: ProgressCallback
    ) -> None:
        self._counter, self._open, self._progress = counter, runner, progress

    def results(self, source: Input, work: Work, state: Written) -> Iterator[list[Done]]:
        opened: list[Runner] = []

        def runner() -> Runner:
            if not opened:
                loads = {**work.load_options, "progress": self._progress}
                make = self._open or (lambda work: open_runner(work.path, work.task, work.options, loads))
                opened.append(make(work))
            return opened[0]

        try:
            for window in wanted_windows(source, work, state):
                yield from work_through(window, work, self._counter, runner, state.is_wanted)
        finally:
            for one in opened:
                one.close()


def wanted_windows(source: Input, work: Work, state: Written) -> Iterator[list[Line]]:
    """The windows that hold a row which is still to be written.

    Raises:
        BatchError: the file was changed since it was surveyed.
    """
    with source.open() as file:
        for window in windows(read_lines(file, source), work.limits):
            if any(state.is_wanted(line) for line in window):
                yield window
        if file_state(file) != state.survey.state:
            raise BatchError(
                f"{source.name} was changed while it was read",
                found="another size or time of change",
                expected="a file that nobody writes",
                remedy="begin anew with the new file: --force",
            )


def _as_generator(results: Iterator[list[Done]]) -> Any:
    """So that it can be closed, whatever kind of iterator it is."""
    yield from results


def _lock(stack: ExitStack, source: Input, output: Path) -> None:
    if not output.parent.is_dir():
        raise BatchError(f"there is no folder {output.parent}", remedy="make it, or choose another file")
    if output.exists() and not output.is_file():
        found = "a folder" if output.is_dir() else "no regular file: a pipe or a device"
        raise BatchError(f"{output} cannot be the output", found=found, expected="a new file")
    if output.exists() and source.path.exists() and output.samefile(source.path):
        raise BatchError(f"{output} is the input", remedy="choose another file for the output")
    try:
        stack.enter_context(exclusive_lock(output))
    except TargetLockedError as error:
        raise BatchError(
            f"{output} is being written by another job",
            found=error.found,
            remedy="wait for it to finish, stop it, or choose another file",
        ) from None
    except ExportError as error:
        raise BatchError(f"{output} cannot be written", found=error.found, remedy="choose another folder") from error


def _earlier(output: Path, *, resume: bool, force: bool) -> Job | None:
    """The job to go on with; None where a new one begins: no row is lost then."""
    if not output.exists() or force:
        return None
    if output.stat().st_size == 0 and job_path(output).exists():
        return None  # one that ended before its first row, as for want of memory
    if not resume:
        raise BatchError(
            f"{output} is there already",
            expected="a new file",
            remedy="choose another, go on with it (--resume), or replace it (--force)",
        )
    return read_job(output)


def _begin(output: Path, job: Job, *, force: bool) -> None:
    """The job's file is on the disk before the output has its first row; without an output it says nothing."""
    try:
        if force:
            output.unlink(missing_ok=True)
        job.save(job_path(output))
    except OSError as error:
        raise write_error(output, error) from error


def _finish(output: Path, job: Job) -> None:
    try:
        job.save(job_path(output))
    except OSError as error:
        raise write_error(job_path(output), error) from error


def _recover(file: Output, source: Input, work: Work, seen: Survey, *, ordered: bool) -> tuple[Written, int]:
    if not ordered:
        count, lines = recover_numbered(file, seen.lines)
        return Written(seen, False, 0, lines), count
    with source.open() as given:
        rows = (read_row(line, work.form) for line in read_lines(given, source))
        count = recover_ordered(file, rows)
    return Written(seen, True, count, bytearray()), count


def _seeded(job: Job) -> Job:
    """With a seed, drawn where texts are sampled and none is asked for."""
    if job.options.get("seed", 0) is not None or not job.options.get("temperature"):
        return job
    from helium_onnx.generation.sampling import draw_seed

    return replace(job, options={**job.options, "seed": draw_seed()})
