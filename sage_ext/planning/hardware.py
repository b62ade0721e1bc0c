"""GPUs and what connects them, from published numbers, and what a message between them takes.

A message takes what NCCL's own model of cost says of the better of its ring and its tree, in the better of
its protocols LL and Simple; nothing overlaps. The links are taken to reach their bandwidth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, log2, prod
from types import MappingProxyType
from typing import NamedTuple

from sage_ext.planning.exchanges import GATHER, Message


class Cluster(NamedTuple):
    """GPUs and what connects them. The defaults are those of an H100.

    Latencies and shares are numbers of [tree, ring] by [LL, Simple], NCCL's algorithms and protocols, from
    its ``src/graph/tuning.cc``.
    """

    name: str = "NVIDIA DGX H100 (80 GB), one 400 Gb/s adapter a GPU"
    """What a plan calls it."""
    # NVIDIA, H100 datasheet: 80 GB, 3.35 TB/s, NVLink 900 GB/s (both directions together).
    memory_bytes: float = 80e9
    """Of one GPU."""
    memory: float = 3.35e12
    """Bandwidth of a GPU's memory, in bytes a second."""
    nvlink: float = 450e9
    """Bandwidth between GPUs of a node, in bytes a second and direction."""
    # NVIDIA, DGX H100 datasheet: 8 GPUs, 8 ConnectX-7 of 400 Gb/s.
    node: int = 8
    """GPUs in a node."""
    network: float = 50e9
    """Bandwidth of a GPU's adapter between nodes, in bytes a second and direction."""
    # baseLat and hwLat.
    base: tuple[tuple[float, float], ...] = ((6.8, 8.4), (6.6, 8.4))
    """Latency of any message, in microseconds."""
    nvlink_hop: tuple[tuple[float, float], ...] = ((0.6, 4.0), (0.6, 3.4))
    """Latency of a hop within a node, in microseconds."""
    network_hop: tuple[tuple[float, float], ...] = ((5.0, 14.0), (2.7, 14.0))
    """Latency of a hop between nodes, in microseconds."""
    share: tuple[tuple[float, float], ...] = ((0.92 / 3.8, 0.92), (0.5, 1.0))
    """Share of the bandwidth that is reached."""


H100 = Cluster()
CLUSTERS: Mapping[str, Cluster] = MappingProxyType(
    {
        # NVIDIA, A100 datasheet (SXM, 80 GB): 2,039 GB/s, NVLink 600 GB/s. DGX A100: 8 adapters of 200 Gb/s.
        "a100": Cluster(
            name="NVIDIA DGX A100 (80 GB), one 200 Gb/s adapter a GPU",
            memory=2.039e12,
            nvlink=300e9,
            network=25e9,
        ),
        "h100": H100,
        # NVIDIA, H200 datasheet: 141 GB, 4.8 TB/s, NVLink 900 GB/s. DGX H200: 8 adapters of 400 Gb/s.
        "h200": Cluster(
            name="NVIDIA DGX H200 (141 GB), one 400 Gb/s adapter a GPU", memory_bytes=141e9, memory=4.8e12
        ),
        # NVIDIA, DGX B200 datasheet, a GPU's eighth: 1,440 GB, 64 TB/s, NVLink 14.4 TB/s; 400 Gb/s adapters.
        "b200": Cluster(
            name="NVIDIA DGX B200 (180 GB), one 400 Gb/s adapter a GPU",
            memory_bytes=180e9,
            memory=8e12,
            nvlink=900e9,
        ),
    }
)


class Line(NamedTuple):
    """The GPUs along one dimension of a mesh."""

    size: int
    a_node: int
    """How many of them are in one node."""


def lines_of(mesh: Sequence[int], cluster: Cluster = H100) -> list[Line]:
    """Return the lines of a mesh, neighbours along its last dimension."""
    strides = [prod(mesh[i + 1 :]) for i in range(len(mesh))]
    return [
        Line(size, max(1, min(size, cluster.node // stride)))
        for size, stride in zip(mesh, strides, strict=True)
    ]


def seconds(message: Message, line: Line, cluster: Cluster = H100) -> float:
    """Return what NCCL's model says of a message: latency and bandwidth of the best way to send it."""
    nodes = ceil(line.size / line.a_node)
    rate = cluster.nvlink if nodes == 1 else min(cluster.nvlink, line.a_node * cluster.network)
    rounds = 1 if message.how == GATHER else 2
    total = message.nbytes * (line.size if message.how == GATHER else 1)
    best = float("inf")
    for tree in (True, False):
        if tree and message.how == GATHER:
            continue
        row = 0 if tree else 1
        for protocol in range(2):
            near, far = cluster.nvlink_hop[row][protocol], cluster.network_hop[row][protocol]
            if tree:
                hops = 2 * ((line.a_node - 1) * near + (log2(nodes) * far if nodes > 1 else 0))
                moved = 2.0 * total
            else:
                across = rounds * (nodes - 1)
                hops = (rounds * (line.size - 1) - across) * near + across * far
                moved = rounds * (line.size - 1) / line.size * total
            latency = (cluster.base[row][protocol] + hops) * 1e-6
            best = min(best, latency + moved / (rate * cluster.share[row][protocol]))
    return best


def on_the_wire(message: Message, line: Line) -> float:
    """Return the bytes that each GPU sends for a message, by ring."""
    if message.how == GATHER:
        return (line.size - 1) * message.nbytes
    return 2 * (line.size - 1) / line.size * message.nbytes
