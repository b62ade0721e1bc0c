"""Fails where there is no torch, with what to do about it: the first import of what needs torch.

Raises:
    ModuleNotFoundError: there is no torch.
"""

try:
    import torch as torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise  # torch is there, and tells best itself what it misses
    raise ModuleNotFoundError(
        "sage_ext needs torch, and there is none in this environment. Cure: install torch; unless that is "
        "the release that sage_ext was built with, then rebuild sage_ext from the source folder: "
        "pip install --no-build-isolation --force-reinstall --no-deps .",
        name="torch",
    ) from error
