import pytest

from fpgasim.service.workspace import Workspace


@pytest.fixture
def workspace(tmp_path):
    return Workspace.create("tests", path=tmp_path / "workspace")
