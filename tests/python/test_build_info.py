"""The compiled module, its absence, and what each says about itself."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import pickle
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import support
import torch
from models import TinyLanguageModel
from packaging.requirements import Requirement
from warm import Warm, warm

import sage_ext
from sage_ext import _loader, optimizers, selfcheck
from sage_ext import backend as backends
from sage_ext.optimizers import FusedLion, FusedSAGE
from sage_ext.optimizers.hybrid import RULES

ROOT = Path(sage_ext.__file__).parent.parent
CAPABILITIES = ["default", "avx2", "avx512"]
WITHOUT_NATIVE = "import sys; sys.modules['sage_ext._C'] = None\n"
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None\n"


HERE = Path(__file__).parent
# A fresh process finds this sage_ext and the tests' helpers.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)])}


@pytest.fixture(scope="module")
def fresh() -> Iterator[Warm]:
    """Runs Python code in a process that has torch and nothing of ours."""
    with warm(ENVIRONMENT) as started:
        yield started


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process that has nothing, not even torch."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=HERE,  # from the source folder, its sage_ext would hide an installed one
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def output_of(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


class TestImport:
    def test_is_light(self) -> None:
        """Neither torch nor the compiled module comes along with the package."""
        code = (
            "import sys, sage_ext\n"
            "print(sage_ext.__version__, *(name in sys.modules for name in ('torch', 'sage_ext._C')))"
        )
        assert output_of(run(code)) == f"{sage_ext.__version__} False False"

    def test_submodules_load_at_first_use(self, fresh: Warm) -> None:
        code = "import sage_ext; print(sage_ext.optimizers.FusedSAGE.__name__)"
        assert output_of(fresh.run(code)) == "FusedSAGE"
        with pytest.raises(AttributeError, match="nonsense"):
            _ = sage_ext.nonsense

    def test_optimizers_come_from_the_package_itself(self, fresh: Warm) -> None:
        """All of them, at first use, and a type checker sees the same names."""
        code = "from sage_ext import FusedLion; print(FusedLion.__name__)"
        assert output_of(fresh.run(code)) == "FusedLion"
        submodules = {"distributed", "optimizers", "planning", "reference", "routing", "selection"}
        homes = {"planning": {"Plan", "plan"}, "selection": {"AutoConfig", "autoconfig"}}
        elsewhere = set().union(*homes.values())
        assert set(sage_ext.__all__) == {"__version__", *optimizers.__all__, *submodules, *elsewhere}
        assert set(sage_ext.__all__) <= set(dir(sage_ext))
        for name in optimizers.__all__:
            assert getattr(sage_ext, name) is getattr(optimizers, name)
        for home, names in homes.items():
            assert all(getattr(sage_ext, name) is getattr(getattr(sage_ext, home), name) for name in names)
        tree = ast.parse(Path(sage_ext.__file__).read_text())
        typed, untyped = (node for node in tree.body if isinstance(node, ast.If))
        assert ast.unparse(typed.test) == "TYPE_CHECKING"
        seen = {alias.name for node in typed.body for alias in node.names}
        assert seen == {*optimizers.__all__, *submodules, *elsewhere}
        assert ast.unparse(untyped.test) == "not TYPE_CHECKING"
        assert [node.name for node in untyped.body] == ["__getattr__"]
        assert not hasattr(sage_ext, "FusedNonsense")
        with pytest.raises(ImportError, match="cannot import name 'FusedNonsense'"):
            from sage_ext import FusedNonsense  # noqa: F401

    @pytest.mark.parametrize(
        "statement",
        [
            "from sage_ext import FusedLion",
            "from sage_ext import *",
            "from sage_ext.optimizers import FusedLion",
            "import sage_ext.reference",
            "import sage_ext; sage_ext.routing",
        ],
    )
    def test_without_torch(self, statement: str) -> None:
        """The package is there; what needs torch says so, and what to do."""
        code = WITHOUT_TORCH + (
            "import sage_ext\n"
            "print(sage_ext.__version__, hasattr(sage_ext, 'nonsense'), 'FusedLion' in dir(sage_ext))\n"
            "try:\n"
            f"    exec({statement!r})\n"
            "except ImportError as error:\n"
            "    print(error.name, error)"
        )
        first, second = output_of(run(code)).splitlines()
        assert first == f"{sage_ext.__version__} False True"
        assert second.startswith("torch sage_ext needs torch, and there is none in this environment. Cure: ")
        assert "pip install --no-build-isolation" in second

    def test_torch_that_is_broken_speaks_for_itself(self, tmp_path: Path) -> None:
        (tmp_path / "torch.py").write_text("import a_part_of_torch")
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom sage_ext import FusedLion"
        result = run(code)
        assert result.returncode == 1
        assert result.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'a_part_of_torch'"

    def test_optimizers_import_without_the_compiled_module(self, fresh: Warm) -> None:
        code = WITHOUT_NATIVE + "from sage_ext.optimizers import FusedHybrid; print(FusedHybrid.__name__)"
        assert output_of(fresh.run(code)) == "FusedHybrid"


class TestWithoutTheCompiledModule:
    SETUP = WITHOUT_NATIVE + (
        "import warnings, torch\n"
        "from sage_ext.optimizers import FusedSAGE\n"
        "p = torch.nn.Parameter(torch.ones(2, 2))\n"
    )

    def test_auto_falls_back_with_one_warning(self, fresh: Warm) -> None:
        code = self.SETUP + (
            "with warnings.catch_warnings(record=True) as caught:\n"
            "    warnings.simplefilter('always')\n"
            "    backends = [FusedSAGE([p]).backend for _ in range(3)]\n"
            "print(*set(backends), *(warning.category.__name__ for warning in caught))\n"
            "print('pip install' in str(caught[0].message))\n"
            "optimizer = FusedSAGE([p])\n"
            "p.grad = torch.ones(2, 2)\n"
            "optimizer.step()\n"
            "print(float(p.detach()[0, 0]) < 1)"
        )
        assert output_of(fresh.run(code)).splitlines() == ["reference RuntimeWarning", "True", "True"]

    def test_native_raises_with_the_cure(self, fresh: Warm) -> None:
        result = fresh.run(self.SETUP + "FusedSAGE([p], backend='native')")
        assert result.returncode == 1
        assert "NativeUnavailableError" in result.stderr
        assert "was not built" in result.stderr
        assert "pip install --no-build-isolation ." in result.stderr

    def test_reference_says_nothing(self, fresh: Warm) -> None:
        strict = "import warnings; warnings.simplefilter('error')\n"
        result = fresh.run(strict + self.SETUP + "FusedSAGE([p], backend='reference')")
        assert result.returncode == 0, result.stderr

    def test_pickle_from_a_machine_with_it(self, fresh: Warm, tmp_path: Path) -> None:
        """A pickled optimizer finds out anew what this machine has."""
        param = torch.nn.Parameter(torch.ones(2, 2))
        optimizer = FusedSAGE([param], backend="auto")
        assert optimizer.backend == "native"
        file = tmp_path / "optimizer.pickle"
        file.write_bytes(pickle.dumps(optimizer))
        code = WITHOUT_NATIVE + f"import pickle; print(pickle.load(open({str(file)!r}, 'rb')).backend)"
        assert output_of(fresh.run(code)) == "reference"

    def test_diagnosis(self, fresh: Warm) -> None:
        code = WITHOUT_NATIVE + "import runpy; runpy.run_module('sage_ext', run_name='__main__')"
        result = fresh.run(code)
        assert result.returncode == 1
        assert "not usable" in result.stdout
        assert "pip install --no-build-isolation ." in result.stdout


class TestExplanations:
    HERE = Path(__file__).parent

    def explain(self, error: Exception, folder: Path | None = None) -> str:
        text = _loader.explain(error, folder or self.HERE, "2.13.0")
        assert text.startswith("sage_ext's compiled module cannot be used: ")
        assert "Cure: " in text
        assert "pip install --no-build-isolation" in text
        return text

    def test_not_built(self) -> None:
        text = self.explain(ModuleNotFoundError("No module named 'sage_ext._C'", name="sage_ext._C"))
        assert "was not built" in text
        assert str(self.HERE) in text

    def test_built_for_another_python(self, tmp_path: Path) -> None:
        (tmp_path / "_C.cpython-39-x86_64-linux-gnu.so").touch()
        (tmp_path / "_C.pyi").touch()
        text = self.explain(ModuleNotFoundError("No module named", name="sage_ext._C"), tmp_path)
        assert "another Python" in text
        assert "found _C.cpython-39-x86_64-linux-gnu.so." in text

    def test_built_for_another_torch(self) -> None:
        text = self.explain(ImportError("_C.so: undefined symbol: _ZN3c105ErrorC2"))
        assert "another version of torch than the 2.13.0" in text
        assert "_ZN3c105ErrorC2" in text

    @pytest.mark.parametrize(
        ("library", "expected"),
        [("libcudart.so.12", "CUDA build of torch"), ("libgomp.so.1", "loader's path")],
    )
    def test_missing_library(self, library: str, expected: str) -> None:
        error = ImportError(f"{library}: cannot open shared object file: No such file or directory")
        text = self.explain(error)
        assert f"needs {library}" in text
        assert expected in text

    def test_older_system(self) -> None:
        assert "newer C or C++ runtime" in self.explain(ImportError("version `GLIBC_2.38' not found"))

    def test_anything_else_is_quoted(self) -> None:
        assert "RuntimeError: it broke" in self.explain(RuntimeError("it broke"))

    def test_versions(self) -> None:
        info = {"torch_version": "2.13.0", "version": sage_ext.__version__}
        assert _loader.version_mismatch(info, "2.13.1+cu130") is None
        assert "torch 2.13.0 and torch 2.14.0 is running" in _loader.version_mismatch(info, "2.14.0")
        info["version"] = "0.0.1"
        assert f"sage_ext 0.0.1 and sage_ext {sage_ext.__version__}" in _loader.version_mismatch(
            info, "2.13.0"
        )


class TestGpuMismatch:
    @pytest.mark.parametrize(
        ("archs", "capability"),
        [
            ("8.0;9.0", (8, 0)),
            ("8.0;9.0", (8, 9)),  # machine code for 8.0 runs on every later 8.x
            ("8.0;9.0+PTX", (12, 0)),
            ("9.0a", (9, 0)),
            ("Hopper", (9, 0)),
        ],
    )
    def test_runs(self, archs: str, capability: tuple[int, int]) -> None:
        assert _loader.gpu_mismatch({"cuda_arch_list": archs}, capability) is None

    @pytest.mark.parametrize(
        ("archs", "capability"),
        [("8.0;9.0", (7, 5)), ("8.6", (8, 0)), ("8.0;9.0", (10, 0)), ("9.0a+PTX", (10, 0))],
    )
    def test_does_not_run(self, archs: str, capability: tuple[int, int]) -> None:
        text = _loader.gpu_mismatch({"cuda_arch_list": archs}, capability)
        assert text is not None
        assert f"compute capability {archs}, and the GPU has {capability[0]}.{capability[1]}. Cure: " in text
        assert f"TORCH_CUDA_ARCH_LIST={capability[0]}.{capability[1]}" in text


class TestBackendChoice:
    def test_auto_is_native(self) -> None:
        optimizer = FusedLion([torch.nn.Parameter(torch.ones(2))])
        assert optimizer.backend == "native"
        assert backends.resolve("auto", [torch.device("meta")]) == "native"

    @pytest.mark.parametrize("requested", ["auto", "native"])
    @pytest.mark.parametrize(("kind", "cure"), [("cuda", "SAGE_EXT_CUDA=1"), ("mps", "move them to a CPU")])
    def test_never_silently_on_an_accelerator(
        self, requested: Any, kind: str, cure: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Kernels for the device, an error, or the reference where it was asked for; with and without _C."""
        device = torch.device(kind)
        assert backends.resolve("reference", [device]) == "reference"
        if not _loader.load().build_info()["cuda"]:
            with pytest.raises(_loader.NativeUnavailableError, match=rf"{kind} device.*{cure}.*reference"):
                backends.resolve(requested, [torch.device("cpu"), device])
        monkeypatch.setattr(_loader, "problem", lambda: "it was not built")
        with pytest.raises(
            _loader.NativeUnavailableError, match=r"it was not built; or pass backend=\"reference\""
        ):
            backends.resolve(requested, [device])

    @pytest.mark.parametrize("requested", ["auto", "native"])
    def test_gpu_that_the_kernels_were_not_built_for(
        self, requested: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        built = SimpleNamespace(build_info=lambda: {"cuda": True, "cuda_arch_list": "8.0;9.0"})
        monkeypatch.setattr(_loader, "load", lambda: built)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        capabilities = {0: (9, 0), 1: (7, 5)}
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device.index])
        devices = [torch.device("cpu"), torch.device("cuda", 0)]
        assert backends.resolve(requested, devices) == "native"
        with pytest.raises(
            _loader.NativeUnavailableError, match=r"8\.0;9\.0, and the GPU has 7\.5.*reference"
        ):
            backends.resolve(requested, [*devices, torch.device("cuda", 1)])


class TestBuild:
    def test_info(self) -> None:
        info = _loader.load().build_info()
        assert info["version"] == sage_ext.__version__
        assert info["torch_version"].split("+")[0] == torch.__version__.split("+")[0]
        assert info["compiler"]
        assert set(info["cpu_capabilities"]) <= set(CAPABILITIES)
        assert "default" in info["cpu_capabilities"]
        assert isinstance(info["cuda"], bool)
        assert bool(info["cuda_arch_list"]) == info["cuda"]
        assert bool(re.fullmatch(r"\d+\.\d+", info["cuda_version"])) == info["cuda"]
        if info["cuda"]:  # the toolkit and torch have to be of the same major version
            assert info["cuda_version"].split(".")[0] == torch.version.cuda.split(".")[0]
        assert _loader.load().cpu_capability() in info["cpu_capabilities"]

    def test_requires_the_release_of_torch_that_it_was_built_with(self) -> None:
        requirements = [Requirement(text) for text in importlib.metadata.requires("sage_ext")]
        (needed,) = [requirement for requirement in requirements if requirement.name == "torch"]
        built = _loader.load().build_info()["torch_version"]
        assert str(needed) == "torch=={}.{}.*".format(*built.split(".")[:2])
        assert needed.specifier.contains(torch.__version__, prereleases=True)
        another = ".".join([*built.split(".")[:1], str(int(built.split(".")[1]) + 1), "0"])
        assert not needed.specifier.contains(another, prereleases=True)
        assert _loader.version_mismatch(_loader.load().build_info(), another) is not None

    def test_diagnosis(self, fresh: Warm) -> None:
        result = fresh.run("import runpy; runpy.run_module('sage_ext', run_name='__main__')")
        assert result.returncode == 0, result.stdout + result.stderr
        for rule in RULES:
            assert f"{rule} agrees with the reference" in result.stdout
        assert sage_ext.__version__ in result.stdout
        info = _loader.load().build_info()
        assert re.search(r"cuda kernels  (for|not built)", result.stdout)[1] == (
            "for" if info["cuda"] else "not built"
        )
        assert info["cuda_arch_list"] in result.stdout
        if not torch.cuda.is_available():
            assert "gpu           none usable: " in result.stdout

    def test_self_check_sees_a_difference(self, monkeypatch: pytest.MonkeyPatch) -> None:
        native = _loader.load()

        class Broken:
            def __getattr__(self, name: str) -> Any:
                def function(params: list[torch.Tensor], *args: Any, **kwargs: Any) -> None:
                    getattr(native, name)(params, *args, **kwargs)
                    if name == "lion_":
                        params[0][3, 5] += 1e-4

                return function

        verdicts = {name: selfcheck.is_good(value) for name, value in selfcheck.run(Broken()).items()}
        assert verdicts == {rule: rule != "lion" for rule in RULES}
        assert not selfcheck.is_good(float("nan"))

    def test_one_openmp_runtime(self, fresh: Warm) -> None:
        """Two of them in one process oversubscribe its cores, or crash."""
        code = (
            "import torch, sage_ext._loader as loader; loader.load(); torch.ones(10**6).sum()\n"
            "import json, re\n"
            "print(json.dumps(sorted({line.split()[-1] for line in open('/proc/self/maps')"
            " if re.search(r'lib(g|i)omp[-.0-9a-z]*\\.so|libomp\\.so', line)})))"
        )
        assert len(json.loads(output_of(fresh.run(code)))) == 1

    @pytest.mark.parametrize("capability", CAPABILITIES)
    def test_instruction_sets_agree(self, fresh: Warm, capability: str) -> None:
        """Each is compared with the float64 reference in a process of its own; a lesser CPU runs what it
        has."""
        code = (
            "import support, torch\n"
            "from sage_ext import _loader\n"
            "native = _loader.load()\n"
            "for rule in support.ALL:\n"
            "    for dtype in (support.FP32, support.BF16):\n"
            "        tensors = support.make(rule, support.shapes_of(rule), (dtype,) * 3)\n"
            "        support.step_and_compare(native, rule, tensors, weight_decay=0.1)\n"
            "print(native.cpu_capability())"
        )
        found = output_of(fresh.run(code, SAGE_EXT_CPU_CAPABILITY=capability))
        assert CAPABILITIES.index(found) <= CAPABILITIES.index(capability)
        if CAPABILITIES.index(capability) <= CAPABILITIES.index(_loader.load().cpu_capability()):
            assert found == capability

    def test_module_follows_the_number_of_threads(self, threads: None) -> None:
        model = TinyLanguageModel()
        for count in (1, 2):
            torch.set_num_threads(count)
            for param in model.parameters():
                param.grad = torch.ones_like(param)
            FusedSAGE(model.parameters(), backend="native").step()
            assert torch.get_num_threads() == count

    def test_stub_is_what_the_module_says(self) -> None:
        script = Path(__file__).parents[2] / "tools" / "stub.py"
        stub = SimpleNamespace(**runpy.run_path(str(script)))
        assert stub.STUB.read_text() == stub.render(_loader.load()), "out of date: make stub"

    def test_functions_are_in_the_dispatcher(self) -> None:
        _loader.load()
        tensors = support.make("lion", [(4, 5)])
        twin = tensors.clone()
        support.call(_loader.load(), "lion", tensors)
        settings = support.hyper("lion")
        torch.ops.sage_ext.lion_(twin.params, twin.grads, twin.states["exp_avg"], **settings)
        support.assert_same_bits(tensors.params, twin.params)
