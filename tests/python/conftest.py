"""Fixtures that every test file shares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from hypothesis import settings

# A shared machine makes single examples slow now and then; the laws are about numbers, not about time.
settings.register_profile("default", deadline=None, derandomize=True)
settings.load_profile("default")


@pytest.fixture(params=["reference", "native"])
def backend(request: pytest.FixtureRequest) -> str:
    """Both backends. Without the compiled module the native half fails: a build without its kernels is
    broken."""
    return request.param


@pytest.fixture
def rules(backend: str) -> ModuleType:
    """The module that holds the rules' functions, such as ``sage_`` and ``lion_``."""
    if backend == "reference":
        from sage_ext import reference

        return reference
    from sage_ext import _loader

    return _loader.load()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Every device that has kernels. The test makes its tensors there unless it says where."""
    if request.param == "cpu":  # torch's default, for which it need not look at every call
        yield torch.device("cpu")
        return
    with torch.device(request.param):
        yield torch.device(request.param)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1234)


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` run wherever there is one."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.hookimpl(trylast=True)  # by then xdist has passed the report on
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A fault on a GPU makes every later call of the process fail: one of several processes leaves then.

    Another takes its place, so that the tests after this one say something of themselves.
    """
    if report.failed and "PYTEST_XDIST_WORKER" in os.environ and _gpu_is_lost():
        os._exit(1)


def _gpu_is_lost() -> bool:
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
