"""How much memory torch asks for while something runs."""

from collections.abc import Callable
from itertools import accumulate

from torch.profiler import ProfilerActivity, profile


def allocations(action: Callable[[], object]) -> list[int]:
    """Return the bytes that each operation of `action` allocates on the CPU and does not free; it runs once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        action()
    return [event.self_cpu_memory_usage for event in measured.events()]


def peak(action: Callable[[], object]) -> int:
    """Return the most bytes that `action` has allocated on the CPU at any time; it runs once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        action()
    events = sorted(measured.events(), key=lambda event: event.time_range.end)
    return max(accumulate(event.self_cpu_memory_usage for event in events))
