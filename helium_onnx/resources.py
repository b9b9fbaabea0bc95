"""What a process may use, asked before the work instead of learnt by a crash in the middle of it."""

from __future__ import annotations

from helium_onnx.errors import ResourceError

#: Measured for 2.2 B parameters: 0.94 GB of address space, and one float32 matrix of up to 0.5 GB; with room to spare.
EXPORT_BYTES = 2_500_000_000


def load_bytes(weights_bytes: int) -> int:
    """Address space that loading a bundle takes: the weights mapped and packed once more, libraries and threads."""
    return int(2.2 * weights_bytes) + 1_000_000_000


def check_address_space(needed_bytes: int, what: str) -> None:
    """Raise ResourceError where the process's address space (``ulimit -v``) is limited below ``needed_bytes``.

    Under such a limit libraries fail to load in ways that name no memory ("failed to map segment"), or abort. ``what``
    is the work to be done, as ``export``, for the message. Systems without such limits pass.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or limit >= needed_bytes:
        return
    raise ResourceError(
        f"{what} needs more address space than this process may use",
        found=f"a limit of {limit / 1e9:.2f} GB",
        expected=f"at least {needed_bytes / 1e9:.2f} GB",
        remedy=f"raise the limit: ulimit -v {-(-needed_bytes // 1024)}, or ulimit -v unlimited",
    )
