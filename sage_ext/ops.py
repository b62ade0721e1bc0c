"""``import sage_ext.ops`` makes ``torch.ops.sage_ext.*`` known: the kernels behind PyTorch's dispatcher.

For train steps that are compiled as a whole, with ``torch.compile(..., fullgraph=True)``. Each rule has
an operator: ``sage_``, ``sinkgd_``, ``scale_``, ``lion_``, ``sign_sgd_``, ``alias_``, ``alias_adam_`` and
``adamw_``. It takes the lists and arguments of the function of that name in ``sage_ext.reference``, changes
parameters and states in place and returns nothing. ``lr`` is a number or a floating tensor with one element,
on any device; a ``loss``, which the first step of ALIAS may need, is a tensor.

Raises:
    NativeUnavailableError: the compiled module cannot be used; says why, and the cure.
"""

from sage_ext import _loader

_loader.load()
