"""Fails a build in which a public name is missing, or its docstring says too little.

What is public stands in ``__all__``. Each of these names has to be on some page, with a docstring, as has
each member that is shown; functions and constructors name every argument under Args, and an optimizer says
what it raises and where its formula is from.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

import sage_ext

logger = logging.getLogger(__name__)
ROOT = Path(sage_ext.__file__).parent
NOT_ARGUMENTS = ("self", "cls")


def public_names() -> Iterator[tuple[str, str]]:
    """Yield module and name of everything in an ``__all__``, read without importing anybody's framework."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["__all__"]:
                module = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
                for name in ast.literal_eval(node.value):
                    yield module.removesuffix(".__init__"), name


def is_module(module: str, name: str) -> bool:
    place = ROOT.parent.joinpath(*module.split("."), name)
    return place.is_dir() or place.with_suffix(".py").is_file()


def check_pages(app: Sphinx, env: BuildEnvironment) -> None:
    shown = {name.rpartition(".")[2] for name in env.domains["py"].data["objects"]}
    for module, name in public_names():
        if name != "__version__" and name not in shown and not is_module(module, name):
            logger.warning("%s.%s is public, but on no page of docs/api", module, name, type="public_names")


def check_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    text = "\n".join(lines)
    if what == "class" and (own := vars(obj).get("__init__")) is not None:
        text += "\n" + inspect.cleandoc(own.__doc__ or "")
    missing = [f"a docstring of {field}" for field in bare_fields(what, obj)]
    if not text.strip() or text.startswith("Alias for field number"):
        missing.append("a docstring")
    missing += [f"{own!r} under Args" for own in arguments_of(what, obj) if not says(text, own)]
    if what == "class" and re.fullmatch(r"sage_ext\.Fused\w+", name):
        missing += ["Raises"] if "Raises:" not in text else []
        missing += ["its source (arXiv)"] if "arXiv" not in text and name != "sage_ext.FusedHybrid" else []
    if missing:
        logger.warning("%s lacks %s", name, ", ".join(missing), type="public_names")


def bare_fields(what: str, obj: Any) -> list[str]:
    """Return the annotated attributes of a class that have no docstring; Sphinx tells nobody of these."""
    if what != "class":
        return []
    documented = ModuleAnalyzer.for_module(obj.__module__).find_attr_docs()
    fields = vars(obj).get("__annotations__", {})
    return [
        field
        for field in fields
        if not field.startswith("_") and field != "rules" and (obj.__qualname__, field) not in documented
    ]


def arguments_of(what: str, obj: Any) -> list[str]:
    """Return the arguments that a docstring has to name: of functions, methods and constructors of ours."""
    if what not in ("class", "function", "method"):
        return []
    if what == "class":
        own = vars(obj).get("__init__")
        if own is None or dataclasses.is_dataclass(obj) or name_of_base(obj):
            return []
        obj = own
    try:
        parameters = inspect.signature(obj).parameters
    except (TypeError, ValueError):
        return []
    return [argument for argument in parameters if argument not in NOT_ARGUMENTS]


def name_of_base(obj: type) -> bool:
    """Whether nobody makes one: a base class, whose arguments are those of its classes."""
    return obj.__module__ == "sage_ext.optimizers.base"


def says(text: str, argument: str) -> bool:
    return re.search(rf"^\s+(\w+, )*{argument}(, \w+)*: ", text, re.MULTILINE) is not None


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", check_docstring, priority=400)  # before napoleon rewrites it
    app.connect("env-check-consistency", check_pages)
    return {"parallel_read_safe": True}
