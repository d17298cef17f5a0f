"""What a compression hook keeps, and the averages of its buckets."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from ...groups import GroupError, agree
from ..collectives.groups import timeout_of
from ..methods import CompressionMethod
from ..schedule.worker import Worker
from .codec import CODED, codec_for
from .coded import send_coded
from .feedback import Feedback
from .low_rank import saves, send_low_rank
from .options import HookOptions
from .rounds import Rounds, Turn, carry_out, send_whole
from .topk import send_top_k

if TYPE_CHECKING:
    from torch._C._distributed_c10d import GradBucket
    from torch.distributed import ProcessGroup
    from torch.nn.parallel import DistributedDataParallel


class HookState:
    """What a hook keeps between steps. Made by :func:`register_comm_hook`."""

    def __init__(
        self, ddp: DistributedDataParallel, options: HookOptions, process_group: ProcessGroup | None
    ) -> None:
        self.options = options
        self.step = 0
        """Number of backward passes whose gradients were averaged."""
        self.bytes_sent = 0
        """To other ranks, by this one."""
        named = [
            (name, parameter)
            for name, parameter in ddp.module.named_parameters()
            if parameter.requires_grad and name not in ddp.parameters_to_ignore
        ]
        self._names = [name for name, _ in named]
        self._parameters = [parameter for _, parameter in named]
        self._numbers = {id(parameter): number for number, parameter in enumerate(self._parameters)}
        self._codec = codec_for(options.method) if options.method in CODED else None
        self._feedback = Feedback(options.error_feedback)
        self._factors: dict[int, Tensor] = {}
        self._failure: Exception | None = None
        self._worker = Worker("gradients")
        # Not at exit: gradients that the other ranks never sent would be waited for.
        weakref.finalize(self, self._worker.close).atexit = False
        ranks = dist.get_process_group_ranks(ddp.process_group)
        self._size = len(ranks)
        self._rank = 0
        self._group = process_group
        if self._size == 1:
            return
        if process_group is None:
            self._group = dist.new_group(
                ranks,
                timeout=timeout_of(ddp.process_group),
                # Only if it must be: the ranks may give the group different names if they are in different
                # numbers of groups.
                use_local_synchronization=len(ranks) < dist.get_world_size(),
                group_desc="gradients",
            )
        elif sorted(dist.get_process_group_ranks(process_group)) != sorted(ranks):
            others = dist.get_process_group_ranks(process_group)
            raise ValueError(f"process_group must have the ranks of ddp, {ranks}, got {others}")
        self._rank = dist.get_rank(self._group)
        agree(
            lambda: {**asdict(options), "parameters": _digest(named)},
            self._group,
            what="compress gradients",
            fix="register the same hook for the same model on all ranks",
        )

    def average(self, bucket: GradBucket) -> Future[Tensor]:
        """The hook: have the worker replace the gradients of a bucket by their averages."""
        buffer, last = bucket.buffer(), bucket.is_last()
        if buffer.layout is not torch.strided:
            raise TypeError(f"a hook for compression takes dense gradients, got {buffer.layout}")
        numbers = [self._numbers[id(parameter)] for parameter in bucket.parameters()]
        gradients = dict(zip(numbers, bucket.gradients(), strict=True))
        on_accelerator = buffer.device.type != "cpu"
        ready = torch.Event(buffer.device) if on_accelerator else None
        if ready is not None:
            ready.record()
        done: Future[None] = Future(devices=[buffer.device] if on_accelerator else None)

        def work() -> None:
            try:
                if ready is not None:
                    ready.wait()
                self._average(gradients, last)
            except BaseException as error:  # of any kind: backward() waits for this future
                self._failure = self._failure or GroupError(
                    f"rank {self._rank} of {self._size} could not average its gradients in step {self.step}: "
                    f"{type(error).__name__}: {error}"
                )
            done.set_result(None)

        def result(_: Future[None]) -> Tensor:
            if self._failure is not None:
                raise self._failure
            return buffer

        self._worker.submit(work)
        return done.then(result)

    def _average(self, gradients: Mapping[int, Tensor], last: bool) -> None:
        if self._failure is not None:  # the others are not at the same message any more
            raise self._failure
        if self._group is not None and self._size > 1:
            compressed = {i: g for i, g in gradients.items() if self._compresses(self._parameters[i])}
            others = [gradient for i, gradient in gradients.items() if i not in compressed]
            turn = Turn(self._rank, self._size, self.step, self.options.seed)
            averages = [send_whole(others, turn)] if others else []
            if compressed:
                averages.append(self._send(compressed, turn))
            self.bytes_sent += carry_out(averages, self._group)
        self.step += last

    def _send(self, gradients: Mapping[int, Tensor], turn: Turn) -> Rounds[None]:
        options = self.options
        if options.method is CompressionMethod.TOPK:
            return send_top_k(gradients, options.ratio, self._feedback, turn)
        if options.method is CompressionMethod.POWERSGD:
            return send_low_rank(gradients, options.rank, self._factors, self._feedback, turn)
        assert self._codec is not None
        return send_coded(gradients, self._codec, self._feedback, turn)

    def _compresses(self, parameter: Tensor) -> bool:
        options = self.options
        return (
            options.method is not CompressionMethod.NONE
            and self.step >= options.start_step
            and parameter.ndim >= 2
            and parameter.numel() >= max(options.min_elements, 1)
            and parameter.is_floating_point()
            and (options.method is not CompressionMethod.POWERSGD or saves(parameter.shape, options.rank))
        )

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to go on with the same bits, of this rank: each saves its own.

        Between two steps; tensors, numbers and strings only.
        """
        return {
            "options": {**asdict(self.options), "method": self.options.method.value},
            "world_size": self._size,
            "rank": self._rank,
            "step": self.step,
            "left": {self._names[i]: left.clone() for i, left in self._feedback.left.items()},
            "factors": {self._names[i]: factor.clone() for i, factor in self._factors.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the rank was that saved ``state``.

        Raises:
            ValueError: it was of another rank, world size, model or hook; nothing is changed.
        """
        own = self.state_dict()
        for name in ("options", "world_size", "rank"):
            if state[name] != own[name]:
                raise ValueError(
                    f"the state has {name} {state[name]}, the hook {own[name]}: load that of the same "
                    "rank and hook, or begin without one"
                )
        numbers = {name: number for number, name in enumerate(self._names)}
        for name, tensor in state["left"].items():
            if name not in numbers or self._parameters[numbers[name]].numel() != tensor.numel():
                raise ValueError(f"the state has {tensor.numel()} numbers of {name}, the model has not")
        for name, tensor in state["factors"].items():
            parameter = self._parameters[numbers[name]] if name in numbers else None
            if parameter is None or parameter.shape[1:].numel() != len(tensor):
                raise ValueError(
                    f"the state has a factor of {len(tensor)} rows for {name}, the model has not"
                )
        self._feedback.left = self._on_devices(state["left"], numbers)
        self._factors = self._on_devices(state["factors"], numbers)
        self.step = state["step"]

    def _on_devices(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> dict[int, Tensor]:
        by_number = {numbers[name]: tensor for name, tensor in tensors.items()}
        return {i: x.to(self._parameters[i].device, copy=True) for i, x in by_number.items()}


def _digest(named: Sequence[tuple[str, Tensor]]) -> str:
    text = repr([(name, tuple(parameter.shape), str(parameter.dtype)) for name, parameter in named])
    return blake2b(text.encode(), digest_size=8).hexdigest()
