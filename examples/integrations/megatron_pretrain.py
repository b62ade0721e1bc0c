"""Megatron-LM: import this before ``pretrain()``, and train with ``--optimizer sinkgd``."""

from sage_ext import FusedSinkGD
from sage_ext.integrations.megatron import register

register("sinkgd", FusedSinkGD, alpha=1.0)
