"""Numbers computed by the published code."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Folder of the reference files; GLM_JAX_FIXTURES overrides ../shared/fixtures."""
    default = Path(__file__).parents[3] / "shared" / "fixtures"
    folder = Path(os.environ.get("GLM_JAX_FIXTURES", default))
    if not (folder / "glm_2021.safetensors").is_file():
        pytest.skip(f"no reference files in {folder}; set GLM_JAX_FIXTURES to their folder")
    return folder
