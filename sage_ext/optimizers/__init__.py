"""The optimizers, each a ``torch.optim.Optimizer``."""

from sage_ext import _torch as _torch
from sage_ext.optimizers.adamw import FusedAdamW
from sage_ext.optimizers.alias import FusedALIAS, FusedALIASAdam
from sage_ext.optimizers.description import Description
from sage_ext.optimizers.hybrid import FusedHybrid
from sage_ext.optimizers.sage import FusedSAGE
from sage_ext.optimizers.scale import FusedSCALE
from sage_ext.optimizers.sign import FusedLion, FusedSignSGD
from sage_ext.optimizers.sinkgd import FusedSinkGD

__all__ = [
    "Description",
    "FusedALIAS",
    "FusedALIASAdam",
    "FusedAdamW",
    "FusedHybrid",
    "FusedLion",
    "FusedSAGE",
    "FusedSCALE",
    "FusedSignSGD",
    "FusedSinkGD",
]
