"""Whether a candidate gives what the original gives. Imports torch."""

from __future__ import annotations

from collections.abc import Callable

from .candidate import Candidate, frames_compiled, strict_compiler, threads
from .dropout import without_dropout
from .judge import Evidence, Expected, judge
from .limits import Deadline, NotKeptError
from .original import Original
from .rounds import Round, restored, run_rounds
from .task import seed_all

CHEAP_COMPILE_S = 1.5
"""What compiles no longer is compared with all inputs, however little time is left."""
SHARE = 1 / 8
"""Of the time left to a trial, which compiling for another kind of inputs may take."""
FINAL_SHARE = 1 / 4
"""The same of the confirmation, after which nothing else waits."""
WARM_CALLS = 3
"""Of what is compiled; one of what is not."""


def warm_up(
    candidate: Candidate,
    deadline: Deadline,
    *,
    comparing: bool = False,
    must_compile: bool = True,
) -> float | None:
    """Call a candidate until it is compiled; seconds of the first call beyond the others.

    Args:
        comparing: as for a comparison: without the optimizer, with the random numbers of eager mode.
        must_compile: whether it cannot have been compiled before.

    Returns:
        None if nothing was compiled.

    Raises:
        NotKeptError: it is marked for torch.compile, and nothing was compiled.
    """
    frames, seconds = frames_compiled(), []
    with restored(candidate.model), strict_compiler(candidate.compiled, eager_random=comparing):
        for _ in range(WARM_CALLS if candidate.compiled else 1):
            deadline.check(what="it was warm")
            sample = candidate.task.sample.clone()
            seed_all(0)
            began = deadline.clock()
            candidate.call(sample, optimize=not comparing)
            seconds.append(deadline.clock() - began)
    if candidate.compiled and frames_compiled() > frames:
        return max(seconds[0] - min(seconds[1:]), 0.0)
    if candidate.compiled and must_compile:
        raise NotKeptError("nothing was compiled: the calls ran eagerly, or ran other code than its own")
    return None


def check_equal(
    original: Original,
    candidate: Candidate,
    evidence: Evidence,
    deadline: Deadline,
    *,
    max_error: float,
    share: float = SHARE,
) -> None:
    """Compare a candidate with the original on fresh inputs.

    Args:
        share: of the time left; what compiles for longer is not compared at a length that nobody asked for,
            nor with gradients of inputs that the sample does not ask for.

    Raises:
        NotKeptError: it is not equal, with what differs and by how much.
    """
    options = original.task.options
    with without_dropout(candidate.model, options.training):
        compile_s = evidence.compile_s = warm_up(candidate, deadline, comparing=True)

        def compare(length: int | None, input_gradients: bool, where: str) -> None:
            expected = original.expected(length, input_gradients=input_gradients, pause=deadline.check)
            got = rounds_of(candidate, expected, input_gradients=input_gradients, pause=deadline.check)
            judge(expected, got, candidate.lossless, max_error, evidence, where)

        def affordable() -> bool:
            return compile_s is None or compile_s < max(CHEAP_COMPILE_S, share * deadline.left())

        compare(None, False, "")
        if options.training and affordable() and original.input_gradients(deadline.check):
            compare(None, True, " where inputs need gradients")
        for length in original.lengths(deadline.check):
            if length in options.lengths or affordable():
                compare(length, False, f" at length {length}")


def check_again(
    original: Original, candidate: Candidate, evidence: Evidence, deadline: Deadline, *, max_error: float
) -> None:
    """Compare once more, after many calls, with the first inputs.

    Raises:
        NotKeptError: it is not equal any more.
    """
    expected = original.expected(None, input_gradients=False, pause=deadline.check).first()
    with without_dropout(candidate.model, original.task.options.training):
        got = rounds_of(candidate, expected, input_gradients=False, pause=deadline.check)
    judge(expected, got, candidate.lossless, max_error, evidence, " after it was timed")


def rounds_of(
    candidate: Candidate, expected: Expected, *, input_gradients: bool, pause: Callable[[], None]
) -> list[Round]:
    """What the candidate gives for the same inputs."""

    def before_each() -> None:
        pause()
        candidate.begin()

    with threads(candidate.threads), strict_compiler(candidate.compiled, eager_random=True):
        return run_rounds(
            candidate.task,
            candidate.model,
            expected.samples,
            rates=[one.rate for one in expected.original],
            input_gradients=input_gradients,
            pause=before_each,
        )
