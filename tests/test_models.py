import os
import pickle
import random
import time
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mico_exp.common.errors import InputError
from mico_exp.common.fingerprints import definition
from mico_exp.models import weights
from mico_exp.models.architectures import MLP, can_stack, stack
from mico_exp.models.weights import check_weights, load_state, weights_file


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
    stacked = stack(make(), [model.state_dict() for model in alone])
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
    assert not can_stack(Tiny())
    stacked = stack(Tiny(), [alone.state_dict()])
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
    loaded = load_state(tmp_path / "model.pt", MLP([6, 5, 3]))
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
        load_state(tmp_path / "model.pt", MLP([6, 5, 3]))


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was executed')",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    torch.save({"mlp.0.weight": Bomb()}, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"model\.pt: cannot be read as a state dict"):
        load_state(tmp_path / "model.pt", MLP([6, 5, 3]))


def test_other_precisions_become_that_of_the_architecture(tmp_path):
    state = MLP([6, 5, 3]).state_dict()
    torch.save({name: t.double() for name, t in state.items()}, tmp_path / "model.pt")
    loaded = load_state(tmp_path / "model.pt", MLP([6, 5, 3]))
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    torch.save({name: t.int() for name, t in state.items()}, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"must be torch\.float32, got torch.int32"):
        load_state(tmp_path / "model.pt", MLP([6, 5, 3]))


@pytest.mark.parametrize("content", [b"", b"not a model", pickle.dumps([1, 2])])
def test_a_file_that_is_no_state_dict(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.pt"):
        load_state(tmp_path / "model.pt", MLP([6, 5, 3]))


@pytest.fixture
def state():
    torch.manual_seed(0)
    return {name: t.clone() for name, t in MLP([6, 5, 3]).state_dict().items()}


def flipped(content, bit):
    """The same bytes but for one bit."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def read_damaged(path, content):
    """Digest and weights of a file with this content, or the line by which it is refused."""
    path.unlink()  # others may have the old file mapped
    path.write_bytes(content)
    try:
        return check_weights(path), load_state(path, MLP([6, 5, 3])), None
    except InputError as error:
        return None, None, str(error)


def is_one_line(message, path):
    return message.startswith(f"{path}: ") and "\n" not in message


def test_a_flipped_bit_of_a_zip_is_refused_or_means_nothing(tmp_path, state):
    path = tmp_path / "model.pt"
    torch.save(state, path)
    content, digest = path.read_bytes(), check_weights(path)
    entries = content.index(b"PK\x01\x02")  # where the list of the zip's entries begins
    draw = random.Random(0)
    bits = draw.sample(range(8 * entries), 250)
    bits += draw.sample(range(8 * entries, 8 * len(content)), 250)
    refused = 0
    for bit in bits:
        found, weights, message = read_damaged(path, flipped(content, bit))
        if message is not None:
            refused += 1
            assert is_one_line(message, path)
        else:
            assert found == digest
            assert all(torch.equal(weights[name], state[name]) for name in state)
    assert 100 < refused < 500


def test_an_entry_that_is_marked_as_a_folder_is_refused(tmp_path, state):
    """One bit without a checksum, by which torch would take what happens to lie in memory."""
    path = tmp_path / "model.pt"
    torch.save(state, path)
    content = path.read_bytes()
    name = b"model/data/0"
    entry = content.rindex(name) - 46  # the fixed part of an entry in the zip's list
    assert content[entry : entry + 4] == b"PK\x01\x02"
    path.write_bytes(flipped(content, 8 * (entry + 38) + 4))
    with pytest.raises(InputError, match=r"model\.pt.*model/data/0 is marked as a folder"):
        check_weights(path)


def test_folders_beside_the_entries_of_a_zip_mean_nothing(tmp_path, state):
    path = tmp_path / "model.pt"
    torch.save(state, path)
    digest = check_weights(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.mkdir("model/empty")
    assert check_weights(path) == digest


def test_a_flipped_bit_of_safetensors(tmp_path, state):
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    content, digest = path.read_bytes(), check_weights(path)
    values = 8 + int.from_bytes(content[:8], "little")
    draw = random.Random(0)
    for bit in draw.sample(range(8 * values), 250):
        *_, message = read_damaged(path, flipped(content, bit))
        assert is_one_line(message, path)
    for bit in draw.sample(range(8 * values, 8 * len(content)), 50):  # have no checksum
        found, _, message = read_damaged(path, flipped(content, bit))
        assert message is None
        assert found != digest


def test_a_flipped_bit_of_the_older_format_ends_in_one_line_if_at_all(tmp_path, state):
    path = tmp_path / "model.pt"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    bits = random.Random(0).sample(range(8 * len(content)), 200)
    said = [read_damaged(path, flipped(content, bit))[2] for bit in bits]
    assert all(is_one_line(message, path) for message in said if message)
    assert any(said)


def as_views(state):
    """The same tensors, but all of them parts of one storage."""
    whole = torch.cat([tensor.flatten() for tensor in state.values()])
    parts = whole.split([tensor.numel() for tensor in state.values()])
    return {k: part.view(state[k].shape) for k, part in zip(state, parts, strict=True)}


WRITTEN = {
    "again": lambda state, place: torch.save(state, place / "model.pt"),
    "by another name": lambda state, place: torch.save(state, place / "pytorch_model.bin"),
    "in the older format": lambda state, place: torch.save(
        state, place / "model.pt", _use_new_zipfile_serialization=False
    ),
    "as safetensors": lambda state, place: save_file(
        state, place / "model.safetensors", metadata={"format": "pt"}
    ),
    "with the prefix": lambda state, place: torch.save(
        {"_module." + name: tensor for name, tensor in state.items()}, place / "model.pt"
    ),
    "in another order": lambda state, place: torch.save(
        dict(reversed(state.items())), place / "model.pt"
    ),
    "in double precision": lambda state, place: torch.save(
        {name: tensor.double() for name, tensor in state.items()}, place / "model.pt"
    ),
    "by columns": lambda state, place: torch.save(
        {name: tensor.T.contiguous().T for name, tensor in state.items() if tensor.ndim == 2}
        | {name: tensor for name, tensor in state.items() if tensor.ndim == 1},
        place / "model.pt",
    ),
    "as views": lambda state, place: torch.save(as_views(state), place / "model.pt"),
    "as parameters": lambda state, place: torch.save(
        {name: nn.Parameter(tensor) for name, tensor in state.items()}, place / "model.pt"
    ),
    "with a constant buffer": lambda state, place: torch.save(
        {**state, "position_ids": torch.arange(5)}, place / "model.pt"
    ),
}


@pytest.mark.parametrize("way", WRITTEN)
def test_equal_weights_have_one_digest_however_they_are_written(tmp_path, state, way):
    torch.save(state, tmp_path / "first.pt")
    (tmp_path / "second").mkdir()
    WRITTEN[way](state, tmp_path / "second")
    first = check_weights(tmp_path / "first.pt")
    assert len(first) == 64
    assert check_weights(weights_file(tmp_path / "second")) == first


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {**s, "mlp.0.bias": s["mlp.0.bias"].nextafter(torch.tensor(9.0))},
        lambda s: {**s, "mlp.0.bias": s["mlp.0.bias"].roll(1)},
        lambda s: {**s, "mlp.0.weight": s["mlp.0.weight"].view(6, 5)},
        lambda s: {name.replace("2", "4"): tensor for name, tensor in s.items()},
    ],
)
def test_other_weights_have_another_digest(tmp_path, state, change):
    torch.save(state, tmp_path / "first.pt")
    torch.save(change(state), tmp_path / "second.pt")
    assert check_weights(tmp_path / "first.pt") != check_weights(tmp_path / "second.pt")


@pytest.mark.parametrize(
    ("tensors", "digits"),
    [
        ({"a": torch.tensor(1.0)}, 64),
        ({"a": torch.zeros(0, 3)}, 64),
        ({"a": torch.ones(2, dtype=torch.int8)}, 64),
        ({"a": torch.ones(2, dtype=torch.bfloat16)}, 64),
        ({"a": torch.ones(2), "b": torch.tensor([1.0, torch.nan])}, 0),
        ({"a": torch.tensor([torch.inf])}, 0),
    ],
)
def test_weights_of_all_kinds_have_a_digest_but_those_not_finite(tmp_path, tensors, digits):
    torch.save(tensors, tmp_path / "model.pt")
    assert len(check_weights(tmp_path / "model.pt")) == digits


@pytest.mark.parametrize(
    "tensor", [torch.eye(3).to_sparse(), torch.empty(3, device="meta")], ids=["sparse", "meta"]
)
def test_a_tensor_that_holds_no_plain_numbers_is_refused(tmp_path, tensor):
    torch.save({"a": tensor}, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"model\.pt: .*`a` (is sparse|has no values)"):
        check_weights(tmp_path / "model.pt")


@pytest.mark.parametrize("prefixed_first", [True, False])
def test_a_key_with_and_without_the_prefix_is_refused(tmp_path, state, prefixed_first):
    extra = {"_module.mlp.2.bias": torch.zeros(3)}
    both = extra | state if prefixed_first else state | extra
    torch.save(both, tmp_path / "model.pt")
    for read in (check_weights, lambda path: load_state(path, MLP([6, 5, 3]))):
        with pytest.raises(InputError, match=r"key `mlp\.2\.bias` must be there once"):
            read(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("times", "advice"),
    [
        ({"model.pt": 1, "model.safetensors": 2}, "(by its time stamp model.pt)."),
        ({"model.pt": 2, "pytorch_model.bin": 1}, "(by its time stamp pytorch_model.bin)."),
        (
            {"model.pt": 1, "model.safetensors": 3, "pytorch_model.bin": 2},
            "(by its time stamp model.pt and pytorch_model.bin).",
        ),
        ({"model.pt": 1, "model.safetensors": 1}, "Remove what is stale."),
    ],
)
def test_several_weights_files_are_refused(tmp_path, times, advice):
    for name, stamp in times.items():
        (tmp_path / name).write_bytes(b"weights")
        os.utime(tmp_path / name, (stamp, stamp))
    with pytest.raises(InputError) as caught:
        weights_file(tmp_path)
    assert all(name in str(caught.value) for name in (str(tmp_path), *times))
    assert str(caught.value).endswith(advice)


def test_what_is_kept_of_a_check_is_no_code(tmp_path):
    """Else scores would be stored under a key that the next process does not have."""
    path = tmp_path / "model.pt"
    torch.save(MLP([4, 3]).state_dict(), path)
    long_ago = time.time() - 60
    os.utime(path, (long_ago, long_ago))
    before = definition(weights.load_state)
    weights.check_weights(path)
    assert definition(weights.load_state) == before


def test_small_weights_are_unpickled_once_for_check_and_use(tmp_path, monkeypatch):
    """And again where the file has changed since, by as much as its time stamp."""
    path, model = tmp_path / "model.pt", MLP([4, 3])
    torch.save(model.state_dict(), path)
    long_ago = time.time() - 60
    os.utime(path, (long_ago, long_ago))
    reads, real = [], weights._read_tensors
    monkeypatch.setattr(
        weights, "_read_tensors", lambda *given: reads.append(given) or real(*given)
    )
    weights.check_weights(path)
    first = weights.load_state(path, model)
    assert len(reads) == 1
    assert all(torch.equal(first[name], one) for name, one in model.state_dict().items())
    weights.load_state(path, model)  # it is kept no longer than until it is asked for
    assert len(reads) == 2
    weights.check_weights(path)
    torch.save(MLP([4, 3]).state_dict(), path)
    assert not torch.equal(weights.load_state(path, model)["mlp.0.weight"], first["mlp.0.weight"])
