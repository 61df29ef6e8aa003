import pickle

import pytest
import torch
from torch import nn

from mico_exp import models
from mico_exp.errors import InputError
from mico_exp.models import MLP


class Tiny(nn.Module):
    """An architecture that knows no faster way than one after another."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3))

    def forward(self, inputs):
        return self.layers(inputs)


@pytest.mark.parametrize(
    "make", [lambda: MLP([6, 5, 3]), lambda: MLP([6, 8, 4, 3]), lambda: MLP([6, 3])]
)
def test_stacked_models_give_what_each_gives_alone(make):
    torch.manual_seed(0)
    alone = [make().eval() for _ in range(4)]
    stacked = models.stack(make(), [model.state_dict() for model in alone])
    shared, own = torch.randn(7, 6), torch.randn(4, 7, 6)
    with torch.inference_mode():
        for_all = torch.stack([model(shared) for model in alone])
        each = torch.stack([model(own[i]) for i, model in enumerate(alone)])
        kept = own.clone()
        torch.testing.assert_close(stacked(shared), for_all)
        torch.testing.assert_close(stacked(own, own=True), each)
    assert torch.equal(own, kept)


def test_an_architecture_that_cannot_stack_runs_alone():
    torch.manual_seed(0)
    alone = Tiny().eval()
    assert not models.can_stack(Tiny())
    stacked = models.stack(Tiny(), [alone.state_dict()])
    inputs = torch.randn(7, 6)
    with torch.inference_mode():
        torch.testing.assert_close(stacked(inputs), alone(inputs)[None])


def test_states_of_a_stack_load_into_single_models():
    torch.manual_seed(0)
    alone = [MLP([6, 5, 3]) for _ in range(3)]
    states = MLP([6, 5, 3]).stack([model.state_dict() for model in alone]).states()
    for model, state in zip(alone, states, strict=True):
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(state[name], model.state_dict()[name]) for name in state)


def test_the_competitions_mlp_has_its_size():
    assert sum(p.numel() for p in MLP([600, 128, 100]).parameters()) == 89_828


@pytest.mark.parametrize("prefix", ["", "_module."])
def test_load_state(tmp_path, prefix):
    state = MLP([6, 5, 3]).state_dict()
    torch.save({prefix + name: tensor for name, tensor in state.items()}, tmp_path / "model.pt")
    loaded = models.load_state(tmp_path / "model.pt", MLP([6, 5, 3]))
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("mlp.2.bias"), r"key `mlp\.2\.bias` of shape \(3,\) is missing"),
        (lambda s: s.update(extra=torch.zeros(2)), r"key `extra` of shape \(2,\) is unexpected"),
        (
            lambda s: s.update({"mlp.0.weight": torch.zeros(4, 6)}),
            r"key `mlp\.0\.weight` must have shape \(5, 6\), got \(4, 6\)",
        ),
    ],
)
def test_a_state_that_does_not_fit_names_the_key(tmp_path, change, message):
    state = dict(MLP([6, 5, 3]).state_dict())
    change(state)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(InputError, match=message):
        models.load_state(tmp_path / "model.pt", MLP([6, 5, 3]))


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was executed')",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    torch.save({"mlp.0.weight": Bomb()}, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"model\.pt: cannot be read as a state dict"):
        models.load_state(tmp_path / "model.pt", MLP([6, 5, 3]))


def test_other_precisions_become_that_of_the_architecture(tmp_path):
    state = MLP([6, 5, 3]).state_dict()
    torch.save({name: t.double() for name, t in state.items()}, tmp_path / "model.pt")
    loaded = models.load_state(tmp_path / "model.pt", MLP([6, 5, 3]))
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    torch.save({name: t.int() for name, t in state.items()}, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"must be torch\.float32, got torch.int32"):
        models.load_state(tmp_path / "model.pt", MLP([6, 5, 3]))


@pytest.mark.parametrize("content", [b"", b"not a model", pickle.dumps([1, 2])])
def test_a_file_that_is_no_state_dict(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.pt"):
        models.load_state(tmp_path / "model.pt", MLP([6, 5, 3]))
