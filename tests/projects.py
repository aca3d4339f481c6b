"""Projects of DVC beside the repository, which tests and the storm of kills run in."""

import shutil
from pathlib import Path

ROOT = Path(__file__).parent.parent


def copy_pipeline(root: Path) -> None:
    """Copy the pipeline without its params.yaml, its data and its models to an empty project."""
    shutil.copy(ROOT / "dvc.yaml", root)
    for folder in ("notebooks", "srvp"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "pretrained").mkdir()
    (root / "reports").mkdir()
    shutil.copy(ROOT / "reports" / "paper_results.csv", root / "reports")
    shutil.copytree(ROOT / "reports" / "studies", root / "reports" / "studies")
