"""A foreign `flowrl` in the same folder is refused with the way out; elsewhere it is none of our business."""

import shutil
import subprocess
import sys
from pathlib import Path

import flowrl


def install_foreign(site: Path) -> None:
    info = site / "flowrl-0.2.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flowrl\nVersion: 0.2.0\n")


def run(site: Path) -> subprocess.CompletedProcess:
    code = f"import sys; sys.path.insert(0, {str(site)!r}); import flowrl; print(flowrl.__file__)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=site)


def test_a_mixed_folder_is_refused(tmp_path):
    install_foreign(tmp_path)
    package = Path(flowrl.__file__).parent
    (tmp_path / "flowrl").mkdir()
    # The guard runs before the rest of the package is imported, so these two files are enough.
    for name in ("__init__.py", "_distribution.py"):
        shutil.copy(package / name, tmp_path / "flowrl" / name)
    done = run(tmp_path)
    assert done.returncode != 0
    assert "another distribution, flowrl 0.2.0" in done.stderr
    assert "pip uninstall -y flowrl flowrl-transport" in done.stderr


def test_a_foreign_distribution_elsewhere_does_not_matter(tmp_path):
    install_foreign(tmp_path)
    code = (
        f"import sys; sys.path.append({str(tmp_path)!r})\n"
        f"sys.path.insert(0, {str(Path(flowrl.__file__).parents[1])!r})\n"
        "import flowrl; print(flowrl.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == flowrl.__version__
