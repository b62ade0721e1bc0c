"""torchtitan: the two lines of a configuration function that differ from one with AdamW end in a number.

In a file ``my_config/__init__.py`` this is ``torchrun -m torchtitan.train --module my_config --config
llama3_debug``.
"""

from typing import Any

from sage_ext.integrations.torchtitan import default_hybrid  # 1


def llama3_debug() -> Any:
    from torchtitan.models.llama3.config_registry import llama3_debugmodel

    config = llama3_debugmodel()
    config.optimizer = default_hybrid("sage", lr=2e-3, weight_decay=0.1)  # 2
    return config
