"""The rules in plain, readable PyTorch: the oracle of the tests and the fallback where nothing was compiled.

Each function has the name and the signature of its native counterpart in ``sage_ext._C``. Beyond what the
native kernels take, these run in float64, on any device and with any strides.
"""

from sage_ext import _torch as _torch
from sage_ext.reference.adamw import adamw_
from sage_ext.reference.alias import alias_, alias_adam_
from sage_ext.reference.sage import sage_
from sage_ext.reference.scale import scale_
from sage_ext.reference.sign import lion_, sign_sgd_
from sage_ext.reference.sinkgd import sinkgd_

__all__ = ["adamw_", "alias_", "alias_adam_", "lion_", "sage_", "scale_", "sign_sgd_", "sinkgd_"]
