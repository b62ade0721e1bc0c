"""NVIDIA machine code as cuobjdump prints it: single instructions, and which of them are in loops."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_LINE = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)(\.[\w.]*)?\s*([^;]*);")
_TARGET = re.compile(r"(0x[0-9a-f]+)\s*$")
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}


@dataclass(frozen=True)
class Instruction:
    """One instruction of a function."""

    address: int
    operation: str  # "LDG"
    modifiers: tuple[str, ...]  # ("E", "128")
    operands: str
    is_predicated: bool

    @property
    def is_local_access(self) -> bool:
        return self.operation in ("LDL", "STL")

    @property
    def is_global_load(self) -> bool:
        """Also one that could be of another space (LD) or goes to shared memory (LDGSTS)."""
        return self.operation in ("LDG", "LD", "LDGSTS")

    @property
    def is_global_store(self) -> bool:
        return self.operation in ("STG", "ST")

    @property
    def width(self) -> int:
        """Bytes that a thread moves."""
        return next((_WIDTHS[modifier] for modifier in self.modifiers if modifier in _WIDTHS), 4)

    @property
    def target(self) -> int | None:
        """Where it may jump to."""
        if self.operation not in ("BRA", "CALL", "JMP"):
            return None
        match = _TARGET.search(self.operands)
        return int(match[1], 16) if match else None

    @property
    def falls_through(self) -> bool:
        return self.is_predicated or self.operation not in ("BRA", "JMP", "EXIT", "RET") or self._may_not_jump

    @property
    def _may_not_jump(self) -> bool:
        """A jump whose condition is an operand instead of a predicate: BRA P0, 0x80."""
        return self.operation == "BRA" and "," in self.operands


def parse_instruction(line: str) -> Instruction | None:
    match = _LINE.match(line)
    if match is None:
        return None
    address, predicate, operation, modifiers, operands = match.groups()
    parts = tuple(modifiers.strip(".").split(".")) if modifiers else ()
    return Instruction(int(address, 16), operation, parts, operands.strip(), predicate is not None)


def in_loops(code: list[Instruction]) -> set[int]:
    """The addresses of the instructions that can run again after they ran: those in cycles of the flow graph.

    A jump backwards is not enough: rarely run parts lie at the end of a function and jump back.
    """
    blocks = _blocks(code)
    starts = {block[0].address: index for index, block in enumerate(blocks)}
    successors = []
    for index, block in enumerate(blocks):
        last = block[-1]
        after = {starts[last.target]} if last.target in starts else set()
        if last.falls_through and index + 1 < len(blocks):
            after.add(index + 1)
        successors.append(after)
    cyclic = _cyclic(successors)
    return {instruction.address for index in cyclic for instruction in blocks[index]}


def _blocks(code: list[Instruction]) -> list[list[Instruction]]:
    """Runs of instructions that are entered at the first and left at the last only."""
    targets = {instruction.target for instruction in code}
    blocks: list[list[Instruction]] = []
    is_open = False
    for instruction in code:
        if not is_open or instruction.address in targets:
            blocks.append([])
        blocks[-1].append(instruction)
        is_open = instruction.target is None and instruction.operation not in ("EXIT", "RET")
    return blocks


def _cyclic(successors: list[set[int]]) -> set[int]:
    """The nodes of a graph that can reach themselves: its strongly connected components (Kosaraju)."""
    order: list[int] = []
    _visit(range(len(successors)), successors, order)
    predecessors: list[set[int]] = [set() for _ in successors]
    for node, after in enumerate(successors):
        for other in after:
            predecessors[other].add(node)
    cyclic: set[int] = set()
    for component in _visit(reversed(order), predecessors, []):
        if len(component) > 1 or component[0] in successors[component[0]]:
            cyclic.update(component)
    return cyclic


def _visit(roots: Iterable[int], neighbours: list[set[int]], order: list[int]) -> list[list[int]]:
    """Depth first from every root. Returns what each reached; appends nodes to ``order`` as they are left."""
    seen: set[int] = set()
    trees = []
    for root in roots:
        if root in seen:
            continue
        seen.add(root)
        tree = [root]
        path = [(root, iter(neighbours[root]))]
        while path:
            node, rest = path[-1]
            following = next((other for other in rest if other not in seen), None)
            if following is None:
                order.append(node)
                path.pop()
            else:
                seen.add(following)
                tree.append(following)
                path.append((following, iter(neighbours[following])))
        trees.append(tree)
    return trees
