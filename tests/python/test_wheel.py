"""The wheel in dist/ as `make wheel` leaves it: what it says and has in it, and that it works elsewhere.

The clean environment has torch and what torch requires, as links to this environment's, and no compiler.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import HeaderParser
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename

import sage_ext
from sage_ext import _loader

ROOT = Path(__file__).parents[2]
INFO = _loader.load().build_info()
RELEASE = ".".join(torch.__version__.split(".")[:2])
LABEL = f"cu{INFO['cuda_version'].replace('.', '')}" if INFO["cuda"] else "cpu"
VERSION = f"{sage_ext.__version__}+{LABEL}.torch{RELEASE}"

STEP = """
import torch
from torch import nn
from sage_ext import FusedHybrid

model = nn.Sequential(nn.Embedding(8, 16), nn.Linear(16, 16), nn.LayerNorm(16))
optimizer = FusedHybrid(model, backend="native")
for _ in range(2):
    model(torch.arange(8)).square().sum().backward()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.step()
    for old, new in zip(before, model.parameters()):
        assert not torch.equal(old, new) and torch.isfinite(new).all()
print("stepped")
for name in {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}:
    print(name)
"""


@pytest.fixture(scope="module")
def wheel() -> Path:
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    found = list((ROOT / "dist").glob(f"sage_ext-{VERSION}-{python}-*.whl"))
    if not found:
        pytest.skip("no wheel for this torch: make wheel")
    (path,) = found
    return path


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return HeaderParser().parsestr(archive.read(name).decode())


def required_by(name: str, extras: frozenset[str] = frozenset()) -> Iterator[Distribution]:
    """A distribution and all that it requires here."""
    package = distribution(name)
    yield package
    for requirement in map(Requirement, package.requires or []):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield from required_by(requirement.name, frozenset(requirement.extras))


def link(package: Distribution, folder: Path) -> None:
    """Make a distribution importable in a folder of packages."""
    for top in {file.parts[0] for file in package.files or [] if file.parts[0] != ".."}:
        if not (folder / top).exists() and top != "__pycache__":
            (folder / top).symlink_to(package.locate_file(top))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a clean environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python3*/site-packages")
    for package in required_by("torch"):
        link(package, packages)
    interpreter = folder / "bin" / "python"
    # No index: what the wheel requires has to be there.
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "--quiet", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    return interpreter


def run(python: Path, *arguments: str) -> str:
    result = subprocess.run(
        [str(python), "-I", *arguments],
        cwd=python.parent,
        env={"PATH": str(python.parent), "HOME": str(python.parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_requires_its_torch(metadata: Message) -> None:
    assert metadata["Version"] == VERSION
    (requirement,) = [text for text in metadata.get_all("Requires-Dist") if "extra ==" not in text]
    assert requirement == f"torch=={RELEASE}.*"


def test_brings_no_library(wheel: Path) -> None:
    """torch's OpenMP runtime must stay the only one, and torch's libraries as well."""
    with zipfile.ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if ".so" in Path(name).name]
    assert [re.sub(r"_C\..+\.so$", "_C", name) for name in libraries] == ["sage_ext/_C"]


def test_runs_on_systems_that_torch_runs_on(wheel: Path) -> None:
    tags = parse_wheel_filename(wheel.name)[3]
    oldest = [re.fullmatch(r"manylinux_2_(\d+)_\w+", tag.platform) for tag in tags]
    assert all(oldest), "linux_* is for one system only"
    newest_glibc = max(int(found[1]) for found in oldest)
    if INFO["cuda"]:
        # The static runtime's calls of dlopen() and pthread_create() are those of the glibc it is linked on.
        assert newest_glibc <= 34
    elif int(platform.libc_ver()[1].split(".")[1]) <= 36:  # a newer one may have versions that nobody has met
        assert newest_glibc <= 28


def test_steps_in_a_clean_environment(python: Path) -> None:
    report = run(python, "-m", "sage_ext")
    assert "agrees with the reference" in report
    lines = run(python, "-c", STEP).splitlines()
    assert lines[0] == "stepped"
    (module,) = [line for line in lines if "/sage_ext/_C." in line]
    assert module.startswith(str(python.parents[1]))
    (openmp,) = {Path(line).resolve() for line in lines if "libgomp" in line}
    assert openmp.parent == (Path(torch.__file__).parent / "lib").resolve()
