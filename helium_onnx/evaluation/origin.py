"""Is a checkpoint the one that a bundle was exported from?"""

from __future__ import annotations

from pathlib import Path

from helium_onnx.bundle import Bundle, sha256
from helium_onnx.checkpoint import Checkpoint
from helium_onnx.progress import ProgressCallback, ProgressEvent


def other_checkpoint(bundle: Bundle, checkpoint: Checkpoint, report: ProgressCallback) -> str | None:
    """What to tell where the checkpoint's files are not those that the bundle was made from; None where they are."""
    recorded = {record.path: record for record in bundle.manifest.source}
    paths = {checkpoint.source_name(path): path for path in checkpoint.source_files()}
    changed = sorted(set(recorded) ^ set(paths))
    for name in sorted(set(recorded) & set(paths)):
        report(ProgressEvent("checkpoint", name))
        path: Path = paths[name]
        if path.stat().st_size != recorded[name].size or sha256(path) != recorded[name].sha256:
            changed.append(name)
    if not changed:
        return None
    listed = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
    return f"the bundle was exported from another checkpoint than this one; files that differ: {listed}"
