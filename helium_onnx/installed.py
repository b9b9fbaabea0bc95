"""Which version of a package is installed."""

from __future__ import annotations

import importlib.metadata


def version(package: str) -> str | None:
    """As pip would say it; None where the package is missing, or lies on the path without its metadata."""
    try:
        return importlib.metadata.version(package)
    except Exception:  # PackageNotFoundError; of metadata that is damaged, anything
        return None
