"""Sphinx's settings: `make docs` builds docs/ into build/docs, and every warning is an error."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

from sage_ext import __version__

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))

project = "sage_ext"
author = "The sage_ext authors"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "public_names",  # _ext/
]
# README.md is what GitHub shows of the folder; index.md takes it in as the first page.
exclude_patterns = ["README.md"]

# What GitHub renders too, and no more.
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = {"math"}  # in a fence GitHub leaves backslashes alone
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a page that is taken in begins with a heading of its own

# Nothing is loaded from elsewhere: MathJax comes from a package, as one file that needs no fonts.
_mathjax = Path(importlib.util.find_spec("mathjax").origin).parent / "static" / "mathjax" / "es5"
mathjax_path = "tex-svg.js"

html_theme = "furo"
html_title = f"sage_ext {version}"
html_static_path = [str(_mathjax / mathjax_path), "_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

autoclass_content = "both"  # a constructor's docstring, where it has one of its own
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "undoc-members": True, "exclude-members": "rules"}
autodoc_mock_imports = [
    "axolotl",
    "llamafactory",
    "megatron",
    "nemo_automodel",
    "torchtitan",
    "transformers",
]
# It is written to when it is imported, which a mock does not take.
sys.modules["swift"] = ModuleType("swift")
sys.modules["swift.optimizers"] = SimpleNamespace(OptimizerCallback=object, optimizers_map={})
napoleon_google_docstring = True
napoleon_numpy_docstring = False

nitpicky = True
# There is no inventory of these without a network.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|collections|typing|os|nn)\..*|Tensor|ParamsT|(backends\.)?Backend"),
]
