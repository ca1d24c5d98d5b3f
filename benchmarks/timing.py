"""CPU times of calls that take turns, so that another job on the machine disturbs all alike."""

import time
from collections.abc import Callable, Mapping
from statistics import median


def cpu_ms(
    calls: Mapping[str, Callable[[], object]], *, rounds: int = 9, seconds_a_turn: float = 0.1
) -> dict[str, float]:
    """Median process CPU time of each call, in ms. A short call is repeated until its turn is filled."""
    repeats = {}
    for name, call in calls.items():
        call()
        begin = time.process_time()
        call()
        repeats[name] = max(1, round(seconds_a_turn / (time.process_time() - begin)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.process_time()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.process_time() - begin) / repeats[name] * 1e3)
    return {name: median(taken) for name, taken in times.items()}
