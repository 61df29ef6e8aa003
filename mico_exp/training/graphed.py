"""Steps of a small network on a GPU, recorded once and played back.

A small network's kernels take a GPU less time than a processor takes to ask for them, one by one.
A CUDA graph asks for all of a batch's loss and gradients at once; of MICO's CNN with batches of 32
a step is so twice as fast. What is played back is what was recorded: a network that decides by its
inputs, or by numbers that it draws on the processor, is never recorded.
"""

import logging
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from mico_exp.challenge.records import Inputs
from mico_exp.common.errors import first_line
from mico_exp.models.batching import out_of_memory

log = logging.getLogger(__name__)
WARM_UP = 3  # passes before a recording, in which libraries choose and make room
CLOSE = 1e-4  # to the network itself, as a share
Loss = Callable[[nn.Module, Inputs, Tensor], Tensor]


class Graphed:
    """Loss and gradients of one network at batches of one shape, on CUDA.

    The gradients are left as those of the parameters, which must not be set to None.

    Args:
        network: in training mode.
        parameters: that train, by name.
        loss_of: the mean loss of a batch.
        inputs, labels: of a batch of the shape that all will have.
    """

    def __init__(
        self,
        network: nn.Module,
        parameters: Mapping[str, Tensor],
        loss_of: Loss,
        inputs: Tensor,
        labels: Tensor,
    ) -> None:
        self.inputs, self.labels = inputs.clone(), labels.clone()
        self.parameters = list(parameters.values())

        def passes() -> tuple[Tensor, list[Tensor]]:
            loss = loss_of(network, self.inputs, self.labels)
            found = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
            return loss.detach(), list(found)

        aside = torch.cuda.Stream(inputs.device)
        aside.wait_stream(torch.cuda.current_stream(inputs.device))
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                passes()
        torch.cuda.current_stream(inputs.device).wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        # PyTorch's own stream for recordings is of the device that was the first to have one.
        with torch.cuda.graph(self.graph, stream=torch.cuda.Stream(inputs.device)):
            self.loss, self.gradients = passes()

    def fits(self, inputs: Inputs) -> bool:
        """Whether a batch has the shape that was recorded."""
        return isinstance(inputs, Tensor) and inputs.shape == self.inputs.shape

    def __call__(self, inputs: Inputs, labels: Tensor) -> Tensor:
        """The mean loss () of a batch that fits; its gradients are those of the parameters."""
        assert isinstance(inputs, Tensor)
        self.inputs.copy_(inputs)
        self.labels.copy_(labels)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.loss.clone()


def graphed(
    network: nn.Module,
    parameters: Mapping[str, Tensor],
    loss_of: Loss,
    inputs: Inputs,
    labels: Tensor,
) -> Graphed | None:
    """Record a network's step at batches like this one; None where that cannot be, or is another.

    Buffers, such as those of batch norm, and generators are left as they were.
    """
    if not isinstance(inputs, Tensor) or not inputs.is_cuda:
        return None
    with torch.cuda.device(inputs.device), _undone(network, inputs.device):
        try:
            if _draws_on_processor(network, loss_of, inputs, labels):
                return None
            found = Graphed(network, parameters, loss_of, inputs, labels)
            if _is_the_same(found, network, loss_of, inputs.flip(0), labels):
                return found
            log.info("%s: is not recorded, for it decides by its inputs", type(network).__name__)
        except Exception as error:  # whatever a user's own network does that cannot be recorded
            if out_of_memory(error):
                torch.cuda.empty_cache()
            log.info("%s: is not recorded: %s", type(network).__name__, first_line(error))
    return None


@contextmanager
def _undone(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Undo what passes through a network leave behind in it, and in generators."""
    kept = {name: one.clone() for name, one in network.named_buffers()}
    others = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng([device]):
            yield
    finally:
        random.setstate(others[0])
        np.random.set_state(others[1])  # noqa: NPY002
        for name, one in network.named_buffers():
            one.copy_(kept[name])
        for parameter in network.parameters():
            parameter.grad = None


def _draws_on_processor(network: nn.Module, loss_of: Loss, inputs: Tensor, labels: Tensor) -> bool:
    """Tell whether a pass draws numbers that a graph would repeat for ever."""

    def states() -> list[bytes]:
        told = torch.get_rng_state().numpy().tobytes(), repr(random.getstate()).encode()
        return [*told, repr(np.random.get_state()).encode()]  # noqa: NPY002

    before = states()
    with torch.no_grad():
        loss_of(network, inputs, labels)
    return states() != before


def _is_the_same(
    found: Graphed, network: nn.Module, loss_of: Loss, inputs: Tensor, labels: Tensor
) -> bool:
    """Compare a recording with the network itself, on another batch with the same draws."""
    state = torch.cuda.get_rng_state(inputs.device)
    loss = loss_of(network, inputs, labels)
    expected = torch.autograd.grad(loss, found.parameters, materialize_grads=True)
    torch.cuda.set_rng_state(state, inputs.device)
    again = found(inputs, labels)
    pairs = [(again, loss.detach()), *zip(found.gradients, expected, strict=True)]
    return all(bool((a - b).norm() <= CLOSE * b.norm()) for a, b in pairs)
