"""FLORES-200 for lm-evaluation-harness: the published archive, one direction a task.

The harness's own FLORES tasks load a data set by a script, which ``datasets`` no longer runs (since its 4.0), and have
no pairs of English with French, German or Italian. NLLB Team: No Language Left Behind (2022);
https://github.com/facebookresearch/flores, archive flores200_dataset.tar.gz.
"""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset, DatasetDict

from helium_onnx.errors import UsageError


def sentences(*, source: str, target: str, flores: str | None = None, **_: object) -> DatasetDict:
    """Splits ``dev`` and ``devtest`` of (source, target) sentences; languages are FLORES codes such as "deu_Latn".

    ``flores`` is the unpacked folder flores200_dataset.

    Raises:
        UsageError: the folder was not given, or lacks the languages' files.
    """
    splits = {}
    for split in ("dev", "devtest"):
        paths = [Path(str(flores), split, f"{language}.{split}") for language in (source, target)]
        if flores is None or not all(path.is_file() for path in paths):
            raise UsageError(
                "FLORES-200's files are needed",
                found=flores,
                expected=f"--metadata flores=PATH/flores200_dataset, which holds {split}/{source}.{split}",
                remedy="download flores200_dataset.tar.gz (https://github.com/facebookresearch/flores) and unpack it",
            )
        left, right = (path.read_text(encoding="utf-8").splitlines() for path in paths)
        pairs = zip(left, right, strict=True)
        splits[split] = Dataset.from_list([{"source": one, "target": other} for one, other in pairs])
    return DatasetDict(splits)
