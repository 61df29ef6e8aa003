"""Files that are no weights are told apart by what they hold, in one line."""

import collections
import warnings
import zipfile

import numpy as np
import pytest
import torch

from mico_exp.common.errors import InputError
from mico_exp.models.architectures import MLP
from mico_exp.models.weights import check_weights, load_state

WIDTHS = [6, 5, 3]


class Handed:
    """Pickles to a call of `getattr`, as old accountants do."""

    def __reduce__(self):
        return (getattr, ("text", "upper"))


def state():
    return MLP(WIDTHS).state_dict()


def cut(path):
    torch.save(state(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def script(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and still about
        torch.jit.script(MLP(WIDTHS).mlp).save(str(path))


def compressed(path):
    torch.save(state(), path)
    with zipfile.ZipFile(path) as found:
        entries = {name: found.read(name) for name in found.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in entries.items():
            packed.writestr(name, content)


def other_zip(path):
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("photo.jpg", b"x")


def saved(value):
    return lambda path: torch.save(value() if callable(value) else value, path)


def written(content):
    return lambda path: path.write_bytes(content)


def numpy(save):
    def write(path):
        with path.open("wb") as file:
            save(file, np.zeros(3))

    return write


def changed(name, change):
    def save(path):
        found = dict(state())
        found[name] = change(found[name])
        torch.save(found, path)

    return save


KINDS = {
    "empty": (written(b""), "it is empty"),
    "pointer": (written(b"version https://git-lfs.github.com/spec/v1\noid"), "pointer of Git LFS"),
    "page": (written(b"\n<!DOCTYPE html><html></html>"), "a web page"),
    "array": (numpy(np.save), "an array of NumPy"),
    "arrays": (numpy(np.savez), "arrays of NumPy"),
    "cut": (cut, "was it cut off"),
    "script": (script, r"TorchScript.*`state_dict\(\)`"),
    "zip": (other_zip, "none of torch's: it holds photo.jpg"),
    "module": (saved(lambda: MLP(WIDTHS)), r"a pickled mico_exp.*MLP.*`state_dict\(\)`"),
    "NumPy": (saved(lambda: {k: v.numpy() for k, v in state().items()}), "arrays of NumPy"),
    "getattr": (saved(lambda: {"accountant": Handed()}), "Opacus before 1.6"),
    "nested": (saved({"model": {"lr": 0.1}}), "the type float as its 'lr'"),
    "list": (saved(lambda: [state()]), "a list of 1"),
    "tensor": (saved(lambda: torch.zeros(3)), "one tensor"),
    "nothing": (saved(dict), "an empty dict"),
    "number": (saved({"lr\x1b[31m": 0.1}), r"the type float as its 'lr\\x1b"),
    "compressed": (compressed, "is compressed"),
    "sparse": (changed("mlp.0.weight", lambda t: t.to_sparse()), r"`mlp\.0\.weight` is sparse"),
    "meta": (changed("mlp.0.weight", lambda t: t.to("meta")), "only a shape"),
    "complex": (changed("mlp.0.weight", lambda t: t + 1j), "is complex"),
    "repeated": (
        changed("mlp.0.weight", lambda _: torch.zeros(1, 1).expand(1 << 20, 1 << 20)),
        "repeats what it holds",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_file_is_that_holds_no_weights(tmp_path, kind):
    write, expected = KINDS[kind]
    path = tmp_path / "model.pt"
    write(path)
    with pytest.raises(InputError, match=expected) as failed:
        check_weights(path)
    said = str(failed.value)
    assert said.startswith(str(path))
    assert said.isprintable()
    assert "weights_only" not in said  # nobody is told to load without a check
    assert len(said) < len(str(path)) + 250


@pytest.mark.parametrize(
    "state_dict", [state(), collections.OrderedDict(state())], ids=["dict", "ordered"]
)
def test_a_state_dict_is_read(tmp_path, state_dict):
    torch.save(state_dict, tmp_path / "model.pt")
    assert check_weights(tmp_path / "model.pt")
    assert load_state(tmp_path / "model.pt", MLP(WIDTHS)).keys() == state_dict.keys()
