"""LLaMA-Factory v1: ``python llamafactory_train.py config.yaml``, or torchrun in python's place.

The other line is in the YAML: ``optim_config: {name: sage_ext, preset: sage}``.
"""

from llamafactory.v1.trainers.sft_trainer import run_sft

import sage_ext.integrations.llamafactory  # noqa: F401

if __name__ == "__main__":
    run_sft()
