"""tests/typing/user_script.py, which type checkers look at (``make types``), is a script that works."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "typing" / "user_script.py"


@pytest.mark.filterwarnings("ignore")
def test_user_script_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "sage hybrid" in capsys.readouterr().out


def test_user_script_has_every_public_name() -> None:
    import sage_ext
    from sage_ext import distributed, planning, selection

    text = SCRIPT.read_text()
    public = {*sage_ext.__all__, *distributed.__all__, *planning.__all__, *selection.__all__}
    assert {name for name in public if name not in text} == {"optimizers"}
