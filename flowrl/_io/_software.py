"""What a result depends on beside the options and the data: versions, code, device, precision."""

import hashlib
import importlib.metadata
from pathlib import Path

import jax

from flowrl._distribution import version


def software() -> dict[str, str]:
    """Return versions, a digest of the code of flowrl, the device, and the precision of matrix products."""
    device = jax.devices()[0]
    return {
        "flowrl": version(),
        **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "equinox")},
        "code": code_digest(Path(__file__).resolve().parents[1]),
        "platform": device.platform,
        "device": device.device_kind,
        "matmul_precision": str(jax.config.jax_default_matmul_precision or "default"),  # pyright: ignore[reportAttributeAccessIssue]
    }


def code_digest(folder: Path) -> str:
    """Return 12 hexadecimal digits of a SHA-256 over all Python files in a folder, their names included."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return total.hexdigest()[:12]
