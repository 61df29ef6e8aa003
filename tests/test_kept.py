"""What is kept on a device for the next model, tried with a processor in a GPU's place."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from mico_exp.challenge.datasets import Features
from mico_exp.common.errors import InputError
from mico_exp.models.architectures import MLP, Alone, Architecture
from mico_exp.models.batching import out_of_memory
from mico_exp.models.workers import one_ahead
from mico_exp.scores import metrics
from mico_exp.scores.inference import ModelRunner, Processor, Shard, Work
from mico_exp.scores.kept import KeptInputs

LOSS = {"loss": metrics.loss}


class Counted(Features):
    """Records that count how often each is asked for as input."""

    def __init__(self, count=100, width=6):
        random = torch.Generator().manual_seed(0)
        labels = torch.randint(3, (count,), generator=random)
        super().__init__(torch.randn(count, width, generator=random), labels)
        self.asked = np.zeros(count, int)

    def inputs(self, indices):
        np.add.at(self.asked, indices.numpy(), 1)
        return super().inputs(indices)


@pytest.fixture
def keeping():
    """Make a runner with batches of 16, for which the inputs of 100 records are 2,400 bytes."""

    def make(most):
        runner = ModelRunner(Processor("cpu", batch_size=16))
        runner.kept = KeptInputs(runner.device, runner.layout, most)
        return runner

    return make


def network(seed):
    torch.manual_seed(seed)
    return Alone(MLP([6, 5, 3]).eval())


def expected(model, records, points):
    index = torch.from_numpy(points)
    with torch.no_grad():
        return metrics.loss(model(records.features[index])[0], records.labels[index]).numpy()


def asked_by_a_second_model(keeping, most, first, second):
    """How often a second model's records are prepared anew, its first two as a probe apart."""
    runner, records = keeping(most), Counted()
    runner.scores(network(0), records, first[None], LOSS)
    records.asked[:] = 0
    model = network(1)
    found = runner.scores(model, records, second[None], LOSS)["loss"][0]
    np.testing.assert_allclose(found, expected(model, records, second), atol=1e-6)
    assert runner.kept.bytes <= most
    return records.asked.sum() - 2


EVERY = np.arange(100)


@pytest.mark.parametrize(
    ("most", "second", "anew"),
    [
        (0, EVERY, 100),  # as on a processor
        (2400, EVERY, 0),
        (1200, EVERY, 52),  # three batches of 16 are kept
        (2400, EVERY[::-1].copy(), 100),  # they fall into other batches
        (2400, EVERY[:50], 50),
    ],
)
def test_models_in_turn_share_inputs(keeping, most, second, anew):
    assert asked_by_a_second_model(keeping, most, EVERY, second) == anew


def test_other_records_at_the_same_points_are_other_inputs(keeping):
    runner, model = keeping(2400), network(0)
    for records in (Counted(), Counted(width=6, count=101), Counted()):
        records.features.add_(records.labels[:, None])
        found = runner.scores(model, records, EVERY[None], LOSS)["loss"][0]
        np.testing.assert_allclose(found, expected(model, records, EVERY), atol=1e-6)


class Careless(nn.Module):
    """A network that writes into what it is given."""

    def __init__(self):
        super().__init__()
        self.inner = MLP([6, 3])

    def forward(self, inputs):
        return self.inner(inputs.mul_(2))


def test_what_a_network_writes_into_its_inputs_reaches_no_other(keeping):
    runner, records = keeping(2400), Counted()
    runner.scores(Alone(Careless().eval()), records, EVERY[None], LOSS)
    model = network(1)
    found = runner.scores(model, records, EVERY[None], LOSS)["loss"][0]
    np.testing.assert_allclose(found, expected(model, records, EVERY), atol=1e-6)


class Scarce(Alone):
    """A model on a device that has no room for more than 7 points once it keeps any."""

    def __init__(self, model, runner):
        super().__init__(model)
        self.runner = runner

    def __call__(self, inputs, *, own=False):
        if len(inputs) > 7 and self.runner.kept.bytes:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().__call__(inputs)


def test_what_is_kept_gives_way_where_memory_runs_out(keeping):
    runner, records = keeping(2400), Counted()
    model = network(0)
    found = runner.scores(Scarce(model.model, runner), records, EVERY[None], LOSS)["loss"][0]
    np.testing.assert_allclose(found, expected(model, records, EVERY), atol=1e-6)
    assert runner.kept.most <= 1200


@pytest.mark.parametrize(
    ("message", "meant"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("GET was unable to find an engine to execute this computation", True),
        ("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory", True),
        ("CUDA error: device-side assert triggered", False),
        ("mat1 and mat2 shapes cannot be multiplied (2x9 and 64x10)", False),
    ],
)
def test_which_errors_mean_that_memory_ran_out(message, meant):
    assert out_of_memory(RuntimeError(message)) is meant
    assert not out_of_memory(ValueError(message))


class Huge(MLP):
    """A network that no device has room for."""

    def _apply(self, *_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 TiB.\nmore")


def test_models_that_do_not_fit_are_one_line(tmp_path):
    work = Work(Architecture.of(Huge([6, 3])), Counted(), LOSS, Processor("cpu"))
    with pytest.raises(InputError, match=r"^cpu has no memory for .*model_0: CUDA out .* TiB\.$"):
        work(Shard((tmp_path / "model_0",), EVERY[None]))


def test_weights_that_are_read_before_give_the_same(tmp_path):
    folders = tuple(tmp_path / f"model_{i}" for i in range(3))
    for i, folder in enumerate(folders):
        folder.mkdir()
        torch.save(network(i).model.state_dict(), folder / "model.pt")
    work = Work(Architecture.of(MLP([6, 5, 3])), Counted(), LOSS, Processor("cpu"))
    shard = Shard(folders, np.broadcast_to(EVERY, (3, 100)))
    read = work.read(shard)
    assert [len(state) for state in read.states] == [4, 4, 4]
    assert work.read(read) is read
    assert np.array_equal(work(shard)["loss"], work(read)["loss"])
    (tmp_path / "model_1" / "model.pt").write_bytes(b"")
    with pytest.raises(InputError, match="model_1"):
        work.read(shard)


def test_the_next_is_prepared_while_one_is_made_use_of():
    begun = [threading.Event() for _ in range(4)]

    def prepare(i):
        begun[i].set()
        if i == 3:
            raise InputError("the last cannot be read")
        return i * 10

    seen = []

    def use():
        for i, value in enumerate(one_ahead(prepare, range(4))):
            assert begun[i + 1].wait(10)
            assert not any(event.is_set() for event in begun[i + 2 :])
            seen.append(value)

    with pytest.raises(InputError, match="the last"):
        use()
    assert seen == [0, 10, 20]
    assert list(one_ahead(prepare, ())) == []


def test_weights_of_more_dimensions_than_an_image_has_are_loaded(tmp_path):
    class Voxels(nn.Module):
        def __init__(self):
            super().__init__()
            self.deep, self.flat = nn.Conv3d(1, 2, 2), nn.Conv2d(2, 3, 1)

        def forward(self, inputs):
            seen = self.deep(inputs.view(-1, 1, 1, 2, 3).expand(-1, -1, 2, -1, -1))
            return self.flat(seen.squeeze(2)).flatten(2).sum(dim=2)

    model = Voxels().eval()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    records, architecture = Counted(), Architecture.of(Voxels())
    loaded = ModelRunner(Processor("cpu")).load(architecture, [tmp_path])
    found = ModelRunner(Processor("cpu")).scores(loaded, records, EVERY[None], LOSS)["loss"][0]
    np.testing.assert_allclose(found, expected(Alone(model), records, EVERY), atol=1e-6)
