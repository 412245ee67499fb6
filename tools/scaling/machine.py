"""Ascend servers as a few numbers, and how long a training step takes on them: a roofline with launches.

Every efficiency and every cost of a launch is an assumption; docs/scaling.md says where each comes from.

- A kernel takes the longer of operations / (peak * fraction) and bytes / (bandwidth * fraction), plus a start. It
  begins when the kernel before it has ended and the host has launched it; the host is ahead of the device by as many
  kernels as the queue holds, at most.
- A ring all-reduce of S bytes over N cards takes 2 (N - 1) / N * S / link. It leaves when the kernels before it have
  ended, on a stream of its own; what outlasts the last one's turn in the graph costs time.
- A server's cores must prepare as many images a second as its cards use.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tools.scaling.counts import StepCounts

SMALL_MESSAGE = 1e6  # bytes; sums of a few numbers over ranks, which nothing hides


@dataclass(frozen=True)
class Machine:
    """A cluster of equal servers. Defaults: Atlas 800 (8 x Ascend 910A, 192 cores)."""

    peak: float = field(default=256e12, metadata={"help": "operations a second and card in float16"})
    bandwidth: float = field(default=1.2e12, metadata={"help": "bytes a second of a card's memory"})
    matrix_fraction: float = field(default=0.5, metadata={"help": "fraction of the peak in products"})
    memory_fraction: float = field(default=0.43, metadata={"help": "fraction of the bandwidth in kernels"})
    kernel_start: float = field(default=3e-6, metadata={"help": "seconds a kernel costs the device beside its work"})
    queue: int = field(default=1024, metadata={"help": "kernels that the host can be ahead of the device"})
    cards: int = field(default=8, metadata={"help": "cards per server"})
    link: float = field(default=24e9, metadata={"help": "bytes a second of a card within its server"})
    network: float = field(default=10e9, metadata={"help": "bytes a second of a card to other servers"})
    message: float = field(default=30e-6, metadata={"help": "seconds a ring step costs beside its bytes"})
    cores: int = field(default=192, metadata={"help": "processor cores per server"})
    core_images: float = field(default=150.0, metadata={"help": "images a second that a core prepares"})


# memory_fraction: set by mindcv's Swin-T on each chip, see docs/scaling.md.
ASCEND_910A = Machine()
ASCEND_A2 = Machine(peak=313e12, bandwidth=1.6e12, memory_fraction=0.31, kernel_start=2e-6)
CHIPS = {"910A": ASCEND_910A, "A2": ASCEND_A2}


@dataclass(frozen=True)
class Launching:
    """Seconds of the host per launch, by kind of kernel: the least and the most to expect."""

    least: Mapping[str, float]
    most: Mapping[str, float]


SUNK = Launching({}, {})  # jit_level O2: the graph lies on the device, the host starts it as one
BY_HOST = Launching(  # jit_level O0 and O1: the host launches every kernel in every step
    {"aclnn": 5e-6, "acl": 15e-6, "graph": 5e-6, "hccl": 30e-6},
    {"aclnn": 20e-6, "acl": 60e-6, "graph": 15e-6, "hccl": 100e-6},
)


@dataclass(frozen=True)
class Timeline:
    """A step on one card.

    Attributes:
        seconds: from the first launch to the end of the last kernel.
        working: of them, those in which the device works if it never waits for the host.
        messages: (seconds after which it can leave, bytes) of each all-reduce.
    """

    seconds: float
    working: float
    messages: tuple[tuple[float, float], ...]


def timeline(counts: StepCounts, machine: Machine, host: Mapping[str, float]) -> Timeline:
    """A step on one card alone, data at hand.

    Args:
        counts: its kernels.
        machine: the card.
        host: seconds of the host per launch, by kind of kernel; kinds that are missing cost nothing.
    """
    launched = ended = working = 0.0
    queue: deque[float] = deque(maxlen=machine.queue)  # the ends of the latest kernels
    messages = []
    seconds = [_kernel_seconds(kernel.operations, kernel.bytes, machine) for kernel in counts.kernels]
    for place in counts.order:
        kernel = counts.kernels[place]
        if len(queue) == machine.queue:
            launched = max(launched, queue[0])
        launched += host.get(kernel.kind, 0.0)
        if kernel.kind == "hccl":
            messages.append((max(launched, ended), kernel.bytes / 2))  # a message is read and written
            continue
        working += seconds[place]
        ended = max(launched, ended) + seconds[place]
        queue.append(ended)
    return Timeline(ended, working, tuple(messages))


def _kernel_seconds(operations: float, moved: float, machine: Machine) -> float:
    computing = operations / (machine.peak * machine.matrix_fraction)
    moving = moved / (machine.bandwidth * machine.memory_fraction)
    return max(computing, moving) + machine.kernel_start


def all_reduce_seconds(size: float, cards: int, machine: Machine) -> float:
    """Seconds of a ring all-reduce of `size` bytes over `cards` cards; the slowest link sets the pace."""
    if cards == 1:
        return 0.0
    pace = machine.link if cards <= machine.cards else machine.network
    return 2 * (cards - 1) * (size / cards / pace + machine.message)


def exposed_seconds(messages: Sequence[tuple[float, float]], cards: int, machine: Machine) -> float:
    """Seconds of all-reduces that the backward pass does not hide; they are sent one after the other.

    Args:
        messages: (seconds after which it can leave, bytes) of each all-reduce.
        cards: that take part.
        machine: with their links.
    """
    if cards == 1:
        return 0.0
    sent = last = alone = 0.0
    for ready, size in messages:
        seconds = all_reduce_seconds(size, cards, machine)
        if size < SMALL_MESSAGE:
            alone += seconds
        else:
            sent, last = max(sent, ready) + seconds, ready
    return max(0.0, sent - last) + alone


@dataclass(frozen=True)
class Row:
    """One number of cards.

    Attributes:
        cards: their number.
        step: seconds of a step.
        exposed: of them, those that all-reduces add.
        images_per_second: of all cards.
        efficiency: fraction of what as many cards would do without all-reduces and with enough cores.
        cores_needed: per server.
        limit: card, links, network or host.
    """

    cards: int
    step: float
    exposed: float
    images_per_second: float
    efficiency: float
    cores_needed: float
    limit: str


def scaling_row(counts: StepCounts, cards: int, machine: Machine, host: Mapping[str, float]) -> Row:
    """How `cards` cards train together."""
    step = timeline(counts, machine, host)
    alone = step.seconds
    exposed = exposed_seconds(step.messages, cards, machine)
    local = min(cards, machine.cards)
    cores_needed = local * counts.batch / (alone + exposed) / machine.core_images
    waiting = local * counts.batch / (machine.cores * machine.core_images)  # seconds that the host needs for a step
    seconds = max(alone + exposed, waiting)
    if seconds > alone + exposed:
        limit = "host"
    elif exposed > 0.1 * alone:
        limit = "network" if cards > machine.cards else "links"
    else:
        limit = "card"
    rate = cards * counts.batch / seconds
    return Row(cards, seconds, exposed, rate, rate * alone / (cards * counts.batch), cores_needed, limit)
