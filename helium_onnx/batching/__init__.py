"""Batch jobs: a file of texts in, a file of results out, a row for a row, whatever interrupts it.

- ``rows``, ``spool``: the input, row by row, each checked; ``survey``: the whole of it, before the model is loaded.
- ``windows``: some rows together, sorted by length into batches for the model, always the same ones.
- ``tasks``: the options of each task, and what its answers become; ``work``: a window worked through.
- ``job``: what identifies a job, in a small file beside the output.
- ``output``: the output file, appended to and cut back to whole rows; ``writing``: each row once.
- ``engine``: all of it, in this process; ``ray_workers``, ``ray_cluster``: the same over Ray Data.
- ``run``: what ``helium_onnx.batch`` calls.
"""
