"""sage_ext in other people's trainers: a module a framework, which is imported only when it is asked for.

``transformers``, ``axolotl``, ``torchtitan``, ``deepspeed``, ``llamafactory``, ``ms_swift``, ``nemo`` and
``megatron``. Each says in its first lines what to write, and which version's contract it follows. Lightning
and accelerate need none: they take an optimizer as it is.
"""
