"""``helium_onnx.batch``: its arguments checked, and put together into a job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helium_onnx.batching.engine import Workers, run_job, run_through
from helium_onnx.batching.report import BatchReport
from helium_onnx.batching.rows import RowForm
from helium_onnx.batching.spool import spooled
from helium_onnx.batching.tasks import TASKS, TokenCounter, limits_of, resolve_options
from helium_onnx.batching.work import Work
from helium_onnx.bundle import Bundle
from helium_onnx.errors import BundleError, UsageError
from helium_onnx.progress import ProgressCallback, silent
from helium_onnx.tasks import checked_task

__all__ = ["batch", "prepare", "run_job", "run_through"]

_BAD_ROWS = ("stop", "report")


def batch(
    bundle: str | os.PathLike[str],
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    task: str,
    options: Mapping[str, Any],
    ordered: bool,
    resume: bool,
    force: bool,
    ray: str | None,
    workers: int | None,
    progress: ProgressCallback | None,
    **settings: Any,
) -> BatchReport:
    """See :func:`helium_onnx.batch`."""
    if resume and force:
        raise UsageError("resume and force exclude each other", remedy="leave one of them out")
    if ray is None and workers is not None:
        raise UsageError("workers are Ray's", remedy="say where: --ray auto, or leave them out")
    work, counter = prepare(bundle, task=task, options=options, numbered=not ordered, **settings)
    pool: Workers | None = None
    if ray is not None:
        from helium_onnx.batching.ray_workers import RayWorkers

        pool = RayWorkers(ray, workers)
    with spooled(os.fspath(input)) as source:
        return run_job(
            source,
            Path(output),
            work,
            counter,
            ordered=ordered,
            resume=resume,
            force=force,
            workers=pool,
            progress=progress or silent,
        )


def prepare(
    path: str | os.PathLike[str],
    *,
    task: str,
    options: Mapping[str, Any],
    numbered: bool = False,
    field: str = "text",
    lines: bool = False,
    bad_rows: str = "stop",
    drop_text: bool = False,
    batch_tokens: int | None = None,
    context_length: int | None = None,
    **load_options: Any,
) -> tuple[Work, TokenCounter]:
    """What a job's workers do, with every argument checked; ``load_options`` are further keywords of ``load``.

    Raises:
        UsageError: an option has a value that it cannot have, or is of another task.
        BundleError: it cannot be read, or computes another task.
    """
    bundle = Bundle.open(path)
    chosen = checked_task(task) or checked_task(bundle.task)
    if chosen is None or chosen != bundle.task:
        raise BundleError(
            f"{bundle.path} cannot do that",
            found=f"a bundle for {bundle.task}",
            expected=f"one for {chosen}",
            remedy=f"export the checkpoint with --task {chosen}",
        )
    if bad_rows not in _BAD_ROWS:
        raise UsageError("bad_rows has a value that it cannot have", found=repr(bad_rows), expected="stop or report")
    resolved = resolve_options(chosen, options)
    form = RowForm(
        lines=lines,
        field=field,
        reserved=TASKS[chosen].keys | {"error"} | ({"line"} if numbered else set()),
        drop_text=drop_text,
        numbered=numbered,
    )
    load_options = {name: value for name, value in load_options.items() if value is not None}
    if context_length is not None:
        load_options["context_length"] = context_length
    work = Work(
        path=bundle.path,
        digest=bundle.digest,
        task=chosen,
        options=resolved,
        form=form,
        limits=limits_of(bundle, resolved, batch_tokens),
        load_options=load_options,
        context_length=context_length,
        reports=bad_rows == "report",
    )
    return work, TokenCounter(bundle, resolved, context_length)
