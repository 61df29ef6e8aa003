"""Jobs of a sweep are composed one from the other, and are what Hydra composes."""

import copy
import itertools
from collections import Counter

import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import SearchPathElement
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from mico_exp.config.composing import SweepLoader
from mico_exp.config.typed import OPTIONS

FOLDER = {
    "experiment/weighted.yaml": "# @package _global_\nformula: {function: {w: 0.5}}\n",
    "experiment/switched.yaml": "# @package _global_\ndefaults: [override /metric: margin]\n",
    "metric/mine.yaml": "defaults: [loss, _self_]\nname: mine\n",
    "formula/following.yaml": "name: following\nfunction: ${formula_of.${metric.name}}\n",
    "experiment/packaged.yaml": "# @package formula\nfunction: {w: 0.5}\n",
    "experiment/including.yaml": "# @package _global_\ndefaults: [weighted, _self_]\n",
    "experiment/placing.yaml": "# @package _global_\ndefaults: [/own@formula.function]\n",
    "own.yaml": "w: 0.5\n",
    "experiment/harmless.yaml": "# @package _global_\ndefaults: [named, _self_]\nseed: 3\n",
    "experiment/named.yaml": "# @package _global_\nsweep: mine\n",
}


@pytest.fixture
def loader(tmp_path):
    """Hydra's own, which finds the folder's options as ``--config-dir`` has it find them."""
    for name, text in FOLDER.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with initialize_config_dir(str(OPTIONS), version_base="1.3"):
        search = copy.deepcopy(GlobalHydra.instance().config_loader().config_search_path)
        search.get_path().insert(-1, SearchPathElement("command-line", f"file://{tmp_path}"))
        yield ConfigLoaderImpl(search)


def flags(node):
    """Flags of a node and of all below it."""
    below = [] if not OmegaConf.is_config(node) else range(len(node))
    keys = node.keys() if OmegaConf.is_dict(node) else below
    return node._metadata.flags, [flags(node._get_node(key)) for key in keys if below]


GRID = [["formula='0'", "formula=stack", "formula=lira_online"], ["metric=loss", "metric=all"]]
TWO = ["formula='0'", "formula='1'"]


@pytest.mark.parametrize(
    ("varied", "fixed", "in_full"),
    [
        ([*GRID, ["scenario='inf'", "scenario=ddp"]], ["seed=3"], 1),
        ([["metric=loss", "metric=margin"]], ["+hydra.launcher.x=1", "experiment=full"], 1),
        ([TWO], ["formula.function.w=0.5"], 2),
        ([TWO], ["metric.name=loss", "metric=loss"], 2),
        ([TWO], ["experiment=weighted"], 2),
        ([TWO], ["experiment=packaged"], 2),
        ([TWO], ["experiment=including"], 2),
        ([TWO], ["experiment=placing"], 2),
        ([TWO], ["experiment=switched"], 1),
        ([TWO], ["experiment=harmless"], 1),
        ([TWO], ["hydra.searchpath=[pkg://hydra]", "experiment=nowhere_else"], 2),
        ([["metric=loss", "metric=mine", "metric=margin"]], [], 2),
        ([["formula='0'", "formula=following"]], ["dataset=cifar10"], 1),
        ([["dataset=digits", "dataset=cifar10"], ["formula='0'", "formula='2'"]], [], 2),
    ],
)
def test_jobs_are_what_hydra_composes(loader, varied, fixed, in_full, monkeypatch, tmp_path):
    elsewhere = tmp_path / "elsewhere" / "experiment"
    elsewhere.mkdir(parents=True)
    (elsewhere / "nowhere_else.yaml").write_text(FOLDER["experiment/weighted.yaml"])
    fixed = [text.replace("pkg://hydra", str(elsewhere.parent)) for text in fixed]
    paths = [text for text in fixed if text.startswith("hydra.searchpath")]
    master = loader.load_configuration("config", [*paths, "hydra.job.num=5"], RunMode.MULTIRUN)
    OmegaConf.set_struct(master.hydra, False)
    master.hydra.overrides.hydra += ["sweep='abc'", "metrics=[loss]"]
    in_turn, composed = SweepLoader(loader), Counter()
    plain = loader.load_sweep_config

    def counting(*arguments):
        composed["times"] += 1
        return plain(*arguments)

    monkeypatch.setattr(loader, "load_sweep_config", counting)
    for choices in itertools.product(*varied):
        job = [*(text for text in fixed if text not in paths), *choices]
        found, wanted = in_turn.load_sweep_config(master, job), plain(master, job)
        assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(wanted)
        assert OmegaConf.to_container(found) == OmegaConf.to_container(wanted)
        assert flags(found) == flags(wanted)
        found.hydra.job.num = found.hydra.job.id = 7  # a job takes its own, and leaves it alone
    assert composed["times"] == in_full
