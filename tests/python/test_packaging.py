"""What ships: the sdist is complete, needs torch for compiling alone, and what is built of it is whole.

The wheel here is put together from objects that no compiler has made, which takes seconds. The real one is
what `make` builds and installs, from an unpacked sdist as well, and what all other tests test.
"""

from __future__ import annotations

import importlib.machinery
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

import pytest
import torch

import sage_ext

ROOT = Path(__file__).parents[2]
# For those who work on the checkout.
NOT_SHIPPED = {".ci/run", ".gitignore"}
# What is left in a checkout, and in no sdist.
LEFT_BEHIND = [
    "sage_ext/_C.cpython-311-x86_64-linux-gnu.so",
    "sage_ext/__pycache__/checks.cpython-311.pyc",
    "tests/python/__pycache__/support.cpython-311.pyc",
    "csrc/core/__pycache__/any.pyc",
    "build/lib/sage_ext/gone.py",
    ".venv/lib/torch/setup.py",
]
# A torch of which only its version may be read.
TORCH = {
    "__init__.py": "raise AssertionError('torch was imported')",
    "version.py": "__version__ = '2.9.1+cu128'\ncuda = '12.8'\n",
}
NO_TORCH = {"__init__.py": "raise ImportError('there is none')"}
OLD_TORCH = {"__init__.py": "__version__ = '2.5.1'", "version.py": "__version__ = '2.5.1'"}
NEW_TORCH = {"__init__.py": "__version__ = '2.13.0'"}
# Makes empty files of what it is to compile or to link, and passes on other questions.
PRETENDED_COMPILER = """#!/bin/sh
case " $* " in
*" -c "*) ;;
*" -shared "*) ;;
*) exec c++ "$@" ;;
esac
for word; do
  if [ "$before" = -o ]; then : > "$word"; fi
  if [ "$before" = -MF ]; then : > "$word"; fi
  before=$word
done
"""


def checkout() -> list[str]:
    """The files of this project here, relative to its folder."""
    git = shutil.which("git")
    if git and (ROOT / ".git").exists():
        listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
        return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    lines = (ROOT / "sage_ext.egg-info" / "SOURCES.txt").read_text().splitlines()  # an unpacked sdist has it
    return [name for name in lines if not name.startswith("sage_ext.egg-info/")]


def copy(files: list[str], target: Path) -> Path:
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    return target


def hook(
    source: Path,
    call: str,
    torch_files: dict[str, str] | None = None,
    before: str = "",
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Call one of the build's hooks, as pip does: in a process of its own, in the folder of the source."""
    path = source.parent / "path"
    shutil.rmtree(path, ignore_errors=True)
    for name, text in (torch_files or {}).items():
        (path / "torch").mkdir(parents=True, exist_ok=True)
        (path / "torch" / name).write_text(text)
    out = source.parent / "out"
    out.mkdir(exist_ok=True)
    code = f"{before}\nfrom setuptools import build_meta\nprint('made ' + build_meta.{call}({str(out)!r}))"
    inherited = {name: value for name, value in os.environ.items() if name != "DIST_EXTRA_CONFIG"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        env={**inherited, "PYTHONPATH": str(path), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def made(result: subprocess.CompletedProcess[str], source: Path) -> Path:
    assert result.returncode == 0, result.stdout + result.stderr
    return source.parent / "out" / re.search(r"^made (.+)$", result.stdout, re.MULTILINE)[1]


def said(result: subprocess.CompletedProcess[str]) -> str:
    """What a hook that failed has said itself."""
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return re.search(r"^sage_ext: .*", result.stderr, re.MULTILINE)[0]


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def torch_requirement(metadata: Message) -> str:
    """The requirement of torch; the others are for extras."""
    (found,) = [text for text in metadata.get_all("Requires-Dist") if "extra ==" not in text]
    return found


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of this checkout and of what such a folder has besides, made without torch."""
    source = copy(checkout(), tmp_path_factory.mktemp("checkout") / "source")
    for name in LEFT_BEHIND:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    return made(hook(source, "build_sdist", NO_TORCH), source)


@pytest.fixture
def source(sdist: Path, tmp_path: Path) -> Path:
    """The sdist unpacked, in a folder with a space in its name."""
    folder = tmp_path / "a folder"
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return unpacked


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


class TestSdist:
    def test_is_complete(self, source: Path) -> None:
        shipped = {name for name in files_below(source) if not name.startswith("sage_ext.egg-info/")}
        assert shipped == {*checkout(), "PKG-INFO", "setup.cfg"} - NOT_SHIPPED

    def test_has_all_that_is_compiled(self, source: Path) -> None:
        """Also what only nvcc and the tests compile."""
        csrc = source / "csrc"
        lines = (csrc / "sources.txt").read_text().splitlines()
        listed = {line.split()[1] for line in lines if line and not line.startswith("#")}
        assert listed == {name for name in files_below(csrc) if name.endswith((".cpp", ".cu"))}
        included = 0
        for path in (source / name for name in files_below(source)):
            if path.suffix not in {".h", ".cpp", ".inl", ".cu", ".cuh"}:
                continue
            folders = [csrc, path.parent, *([source / "tests" / "cpp"] if "tests" in path.parts else [])]
            for name in re.findall(r'^\s*#\s*include "([^"]+)"', path.read_text(), re.MULTILINE):
                included += 1
                assert any((folder / name).is_file() for folder in folders), f"{path} includes {name}"
        assert included > len(listed)

    def test_makes_no_streams(self, source: Path) -> None:
        """A compiler may link a C++ library of its own, whose streams do not get on with torch's."""
        for path in (source / name for name in files_below(source) if name.startswith("csrc/")):
            assert not re.search(r"#include <\w*stream>|std::\w*stream\b", path.read_text()), path

    def test_leaves_torch_open(self, source: Path) -> None:
        metadata = HeaderParser().parsestr((source / "PKG-INFO").read_text())
        assert torch_requirement(metadata) == "torch>=2.6"
        assert "requires-dist" in metadata.get_all("Dynamic")

    def test_says_who_and_what_for(self, source: Path) -> None:
        metadata = HeaderParser().parsestr((source / "PKG-INFO").read_text())
        assert metadata["Name"] == "sage_ext"
        assert metadata["Version"] == sage_ext.__version__
        assert metadata["Author"] == "The sage_ext authors"
        assert metadata["License-Expression"] == "Apache-2.0"
        assert metadata["License-File"] == "LICENSE"
        assert metadata["Requires-Python"] == ">=3.10"
        assert {"optimizer", "pytorch"} <= set(metadata["Keywords"].split(","))
        optimizers = (source / "docs" / "optimizers.md").read_text()
        for url in metadata.get_all("Project-URL"):
            assert url.split(", ")[1] in optimizers
        classifiers = metadata.get_all("Classifier")
        assert "Operating System :: POSIX :: Linux" in classifiers
        pythons = [name.split(".")[1] for name in classifiers if re.search(r"Python :: 3\.\d+$", name)]
        assert pythons == [str(minor) for minor in range(10, 10 + len(pythons))]
        assert metadata.get_payload() == (source / "README.md").read_text()


class TestMetadata:
    def prepared(self, source: Path, torch_files: dict[str, str], **environment: str) -> Message:
        """The metadata of a build. It prints nothing of ours, and asks no compiler."""
        tools = source.parent / "tools"
        tools.mkdir(exist_ok=True)
        for name in ("nvcc", "c++", "gcc"):
            executable(tools / name, f"#!/bin/sh\ntouch '{tools}/called'\nexit 1\n")
        search = f"{tools}{os.pathsep}{os.environ['PATH']}"
        result = hook(source, "prepare_metadata_for_build_wheel", torch_files, PATH=search, **environment)
        folder = made(result, source)
        assert "sage_ext:" not in result.stdout + result.stderr
        assert not (tools / "called").exists()
        return HeaderParser().parsestr((folder / "METADATA").read_text())

    def test_needs_no_torch(self, source: Path) -> None:
        assert torch_requirement(self.prepared(source, NO_TORCH)) == "torch>=2.6"

    @pytest.mark.parametrize("cuda", ["1", "nonsense"])
    def test_names_the_release_of_torch(self, cuda: str, source: Path) -> None:
        """Of a torch that is not imported for it. What is said of CUDA matters to compiling only."""
        metadata = self.prepared(source, TORCH, SAGE_EXT_CUDA=cuda, CUDA_HOME="/nowhere")
        assert torch_requirement(metadata) == "torch==2.9.*"


class TestWheel:
    def build(self, source: Path, **environment: str) -> Path:
        """A wheel, put together by the pretended compiler."""
        compiler = executable(source.parents[1] / "compiler", PRETENDED_COMPILER)  # no space in it
        result = hook(
            source,
            "build_wheel",
            CXX=str(compiler),
            LDSHARED=f"{compiler} -shared",
            SAGE_EXT_CUDA="0",
            TORCH_NO_COMPILER_WRAPPER="1",
            **environment,
        )
        return made(result, source)

    def test_is_whole(self, source: Path) -> None:
        with zipfile.ZipFile(self.build(source)) as wheel:
            names = set(wheel.namelist())
            (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
            requirement = torch_requirement(HeaderParser().parsestr(wheel.read(metadata).decode()))
        release = ".".join(torch.__version__.split(".")[:2])
        assert requirement == f"torch=={release}.*"
        package = {name for name in names if ".dist-info/" not in name}
        module = f"sage_ext/_C{importlib.machinery.EXTENSION_SUFFIXES[0]}"
        assert package == {f"sage_ext/{name}" for name in files_below(source / "sage_ext")} | {module}
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)

    def test_from_a_source_that_cannot_be_written_to(self, source: Path, tmp_path: Path) -> None:
        """With the settings in docs/install.md, a build leaves nothing in the source's folder."""
        shutil.rmtree(source / "sage_ext.egg-info")  # a checkout has none
        before = files_below(source)
        page = (ROOT / "docs" / "install.md").read_text()
        (settings,) = re.findall(r"^printf '(.*)' > /tmp/sage_ext/build\.cfg$", page, re.MULTILINE)
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        config = elsewhere / "build.cfg"
        config.write_text(settings.replace("\\n", "\n").replace("/tmp/sage_ext", str(elsewhere)))
        assert self.build(source, DIST_EXTRA_CONFIG=str(config)).is_file()
        assert files_below(source) == before


class TestWhatStopsABuild:
    def test_no_torch(self, source: Path) -> None:
        text = said(hook(source, "build_wheel", NO_TORCH))
        assert "torch cannot be imported while building (there is none)" in text
        assert "install torch first, then run `pip install --no-build-isolation .`" in text

    def test_old_torch(self, source: Path) -> None:
        text = said(hook(source, "build_wheel", OLD_TORCH))
        assert "torch is 2.5.1, and has to be 2.6 or newer" in text
        assert 'pip install --upgrade "torch>=2.6"' in text

    @pytest.mark.parametrize("call", ["build_sdist", "prepare_metadata_for_build_wheel"])
    def test_old_setuptools(self, call: str, source: Path) -> None:
        text = said(hook(source, call, before="import setuptools; setuptools.__version__ = '76.1.0'"))
        assert "setuptools is 76.1.0, and has to be 77 or newer" in text
        assert 'pip install --upgrade "setuptools>=77"' in text

    def test_no_compiler(self, source: Path) -> None:
        text = said(hook(source, "build_wheel", NEW_TORCH, CXX="/nowhere/c++"))
        assert "'/nowhere/c++' cannot be run (No such file or directory). Install g++ 12 or newer" in text
        assert "apt-get install build-essential" in text

    @pytest.mark.parametrize(
        ("complaint", "expected"),
        [
            ("fatal error: Python.h: No such file or directory", "apt-get install python3-dev"),
            ("fatal error: 'Python.h' file not found", "apt-get install python3-dev"),
            ("unrecognized option '-std=c++20'", "does not compile C++20"),
        ],
    )
    def test_compiler_that_cannot(
        self, complaint: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        check = runpy.run_path(str(ROOT / "setup.py"))["check_compiler"]
        check()  # the compiler of this machine
        compiler = executable(tmp_path / "compiler", f'#!/bin/sh\necho "{complaint}" >&2\nexit 1\n')
        monkeypatch.setenv("CXX", f"'{compiler}'")
        with pytest.raises(SystemExit, match=re.escape(expected)):
            check()
