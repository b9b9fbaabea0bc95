"""A job over Ray Data: workers that hold a model each, on one machine or many.

    this process: the input, window by window  ->  workers: the rows of each batch  ->  this process: the output

Windows are small blocks of a data set, read where this process runs: no other machine needs the input. Ray Data keeps
a bounded number of them under way. Workers open the bundle at its path, which must be there on every machine; those of
one machine map the same pages. When a worker is killed, Ray starts another one and gives it the windows that it had;
rows that come again are dropped, since the writer knows which ones it has. So each row is written once.
"""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from helium_onnx import errors
from helium_onnx.batching.engine import wanted_windows
from helium_onnx.batching.ray_cluster import Pool, check_address, connect, divide
from helium_onnx.batching.rows import Input, Line
from helium_onnx.batching.tasks import Runner, TokenCounter, open_runner
from helium_onnx.batching.work import Done, Work, work_through
from helium_onnx.batching.writing import Written
from helium_onnx.errors import BatchError, BundleError, HeliumOnnxError, MissingDependencyError, UsageError

#: Windows that a worker has at a time: one to work on, and the next one.
_IN_FLIGHT = 2
#: A worker that dies more often dies of its rows, or of its machine's memory.
_RESTARTS = 5


class RayWorkers:
    """Workers in the cluster at ``address``; for ``auto`` the one of this machine, or one that ends with the job.

    Raises:
        MissingDependencyError: ray is not installed.
        UsageError: ``workers`` is below 1.
    """

    def __init__(self, address: str, workers: int | None) -> None:
        try:
            import ray.data  # noqa: F401
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"{(error.name or 'ray').split('.')[0]} is not installed",
                expected="helium-onnx with its [ray] extra",
                remedy="pip install 'helium-onnx[ray]'",
            ) from error
        if workers is not None and workers < 1:
            raise UsageError("workers has a value that it cannot have", found=workers, expected="from 1")
        if address != "auto":
            check_address(address)
        self._address, self._workers = address, workers

    def results(self, source: Input, work: Work, state: Written) -> Iterator[list[Done]]:
        """The output rows of all windows with a row that is wanted, in the windows' order where ``state`` has one.

        Raises:
            BatchError: there is no such cluster, it has too few CPUs, or workers die again and again.
            And what a worker raised.
        """
        with ExitStack() as stack:
            ray = connect(self._address, stack)
            pool = divide(ray, self._workers, work)
            stack.enter_context(_quiet("ray.data"))
            stack.enter_context(warnings.catch_warnings())
            # Ray 2.60 announces another way to bound restarts, and has none yet.
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
            yield from _results(ray, source, work, state, pool)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Let a library log nothing, for the time of the block: its errors come as exceptions too."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def _results(ray: Any, source: Input, work: Work, state: Written, pool: Pool) -> Iterator[list[Done]]:
    from ray.data import ActorPoolStrategy, DataContext

    before = DataContext.get_current()
    context = before.copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # a window is a block of its own, and so are the rows of a batch
    context.execution_options.preserve_order = state.ordered
    load_options = {key: value for key, value in work.load_options.items() if key != "threads"}
    if pool.threads is not None:
        load_options["threads"] = pool.threads
    work = replace(work, path=work.path.resolve(), load_options=load_options)
    DataContext._set_current(context)
    try:
        rows = ray.data.read_datasource(
            _windows(replace(source, path=source.path.resolve()), work, state),
            override_num_blocks=1,
            num_cpus=0,
            label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
        ).map_batches(
            _Worker,
            fn_constructor_args=(work,),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=pool.workers, max_tasks_in_flight_per_actor=_IN_FLIGHT),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            max_restarts=_RESTARTS,
            max_task_retries=_RESTARTS,
        )
        try:
            for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for item in batch.column("done"):
                    yield _received(pickle.loads(item.as_py()))
        except (ray.exceptions.RayError, ray.data.exceptions.UserCodeException) as error:
            raise _failed(error) from error
    finally:
        DataContext._set_current(before)


def _windows(source: Input, work: Work, state: Written) -> Any:
    """A data set of Ray's: a row for each window, which holds its lines and which of them are wanted."""
    import pyarrow
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    def read() -> Iterator[Any]:
        for window in wanted_windows(source, work, state):
            wanted = {line.number for line in window if state.is_wanted(line)}
            yield pyarrow.table({"window": [pickle.dumps((window, wanted))]})

    class Windows(Datasource):  # type: ignore[misc]
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, *_args: Any, **_options: Any) -> list[Any]:
            return [ReadTask(read, BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None))]

    return Windows()


class _Worker:
    """One of the workers, in a process of its own. The model is loaded for the first window."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._counter: TokenCounter | None = None
        self._opened: Runner | None = None

    def __call__(self, batch: Any) -> Iterator[Any]:
        """Gets a window and gives its output rows, batch by batch; what goes wrong is told, not raised."""
        import pyarrow

        lines, wanted = pickle.loads(batch.column("window")[0].as_py())
        try:
            for rows in self._rows(lines, wanted):
                yield pyarrow.table({"done": [pickle.dumps(rows)]})
        except HeliumOnnxError as error:
            told = (type(error).__name__, error.what, error.found, error.expected, error.remedy)
            yield pyarrow.table({"done": [pickle.dumps(told)]})

    def _rows(self, lines: list[Line], wanted: set[int]) -> Iterator[list[Done]]:
        if self._counter is None:
            self._counter = _checked_counter(self._work)
        yield from work_through(lines, self._work, self._counter, self._runner, lambda line: line.number in wanted)

    def _runner(self) -> Runner:
        if self._opened is None:
            work = self._work
            self._opened = open_runner(work.path, work.task, work.options, work.load_options)
        return self._opened


def _checked_counter(work: Work) -> TokenCounter:
    """On this worker's machine the path must hold the same bundle."""
    from helium_onnx.bundle import Bundle

    bundle = Bundle.open(work.path)
    if bundle.digest != work.digest:
        raise BundleError(
            f"{work.path} is another bundle on a worker's machine",
            found=bundle.digest,
            expected=work.digest,
            remedy="copy the bundle to the same path on every machine",
        )
    return TokenCounter(bundle, work.options, work.context_length)


def _received(item: Any) -> list[Done]:
    """What a worker gave; raises the error that it told of."""
    if isinstance(item, list):
        return item
    kind, what, found, expected, remedy = item
    raise getattr(errors, kind)(what, found=found, expected=expected, remedy=remedy)


def _failed(error: Exception) -> BatchError:
    text = [line for line in str(error).strip().splitlines() if line.strip()]
    return BatchError(
        "the workers could not go on",
        found=f"{type(error).__name__}: {text[0][:300] if text else ''}",
        expected="workers that live, with memory for the model",
        remedy="fewer or smaller workers may help (--workers, --batch-tokens); --resume goes on",
    )
