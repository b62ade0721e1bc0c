"""Parameters that lie on several processes, as DTensors. Imported where the first one is met.

``placements`` says over which processes a tensor is spread, ``team`` how the processes agree, ``exchange``
how the stages of all tensors share messages, and ``sharded`` puts a step together.
"""
