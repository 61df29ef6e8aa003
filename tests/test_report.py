"""The report and the runs table as a person sees them: in a browser, after a small sweep."""

import csv
import html
import json
import re
import shutil
import signal
import socket
import time
import urllib.request
from importlib.resources import files

import numpy as np
import pytest
import torch
from browser import open_page
from commands import run, start
from conftest import SIZES, SWEPT, SWEPT_SIZES
from jsonschema import Draft202012Validator
from mlflow import MlflowClient

from mico_exp.challenge.tree import load_scenario
from mico_exp.commands import report

SCENARIOS = ["digits_inf", "digits_hi", "digits_lo"]
CELLS = [f"{metric}/{formula}" for metric in ("confidence", "loss") for formula in "012"]

PROBE = """
<script>
window.addEventListener("load", () => {
  const column = (table, name) => {
    const heads = [...document.querySelectorAll(`#${table} th`)];
    const index = heads.findIndex(head => head.textContent === name);
    const read = () => [...document.querySelector(`#${table}`).tBodies[0].rows]
      .map(row => row.cells[index].textContent.trim());
    return [heads[index], read];
  };
  const found = {};
  found.images = [...document.images].map(image => [image.complete, image.naturalWidth, image.alt]);
  const [tpr, values] = column("all-cells", "TPR@0.1");
  found.before = values();
  tpr.querySelector("button").click();
  found.once = [tpr.getAttribute("aria-sort"), values()];
  tpr.querySelector("button").click();
  found.twice = [tpr.getAttribute("aria-sort"), values()];
  const [scenario, names] = column("all-cells", "scenario");
  scenario.querySelector("button").click();
  found.names = [scenario.getAttribute("aria-sort"), tpr.getAttribute("aria-sort"), names()];
  const choice = document.querySelector("#selection");
  found.choice = [choice.scrollWidth, choice.parentElement.clientWidth];
  found.width = [document.documentElement.scrollWidth, window.innerWidth];
  found.background = getComputedStyle(document.body).backgroundColor;
  const pre = document.createElement("pre");
  pre.id = "found";
  pre.textContent = JSON.stringify(found);
  document.body.append(pre);
});
</script>
"""


@pytest.fixture(scope="module")
def reported(swept, tmp_path_factory):
    made, grid, selection, _ = swept
    folder = tmp_path_factory.mktemp("reported") / "user"
    shutil.copytree(made, folder)
    report = run("mico_exp.report", *SWEPT_SIZES, cwd=folder)
    return folder, grid, selection, report.stdout


@pytest.fixture
def page(reported):
    return (reported[0] / "reports" / "digits.html").read_text(encoding="utf-8")


def probe(folder, page, *flags, **options):
    path = folder / "probed.html"
    path.write_text(page.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    shown, console = open_page(path.as_uri(), "--dump-dom", *flags, **options)
    found = re.search(r'<pre id="found">(.*?)</pre>', shown, flags=re.S)
    return json.loads(html.unescape(found[1])), console


def test_it_stands_alone(reported, page):
    assert f"Report: file://{reported[0]}/reports/digits.html" in reported[3]
    links = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(links) > 10
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert "@import" not in page
    assert "url(" not in page
    targets = set(re.findall(r'href="#(\w+)"', page))
    assert targets == set(re.findall(r'<section id="(\w+)"', page))


def test_the_same_runs_give_the_same_bytes(reported):
    folder, *_ = reported
    names = ("digits.html", "digits.json")
    before = [(folder / "reports" / name).read_bytes() for name in names]
    run("mico_exp.report", *SWEPT_SIZES, cwd=folder)
    assert [(folder / "reports" / name).read_bytes() for name in names] == before


MORE = ["selection.resamples=100"]


@pytest.fixture(scope="module")
def told(reported, tmp_path_factory):
    """A folder in which all was said that a report shows, what was printed, and two reports."""
    folder = tmp_path_factory.mktemp("told") / "user"
    shutil.copytree(reported[0], folder)
    known = "".join(f"{i},{'AB'[i % 2]}\n" for i in range(1797))
    (folder / "known.csv").write_text(f"record,ward\n{known}")
    typed = {
        "audit": [],
        "risk": ["metadata=known.csv", "cell=confidence/2", *MORE],
        "compare": ["digits/inf", "digits/lo", *MORE],
        "gate": ["max_tpr=0.999", *MORE],
    }
    shown = {
        name: run(f"mico_exp.{name}", *words, *SWEPT_SIZES, cwd=folder).stdout
        for name, words in typed.items()
    }
    for name in ("reports", "again"):
        run("mico_exp.report", *SWEPT_SIZES, f"reports={name}", cwd=folder)
    return folder, shown


def told_page(folder):
    return (folder / "reports" / "digits.html").read_text(encoding="utf-8")


def rows_of(page, table):
    """Cells of a table's rows, by its id."""
    found = re.search(rf'<table id="{table}">.*?</table>', page, flags=re.S)[0]
    rows = re.findall(r"<tr><td.*?</tr>", found, flags=re.S)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]


def test_what_was_said_gives_the_same_bytes_too(told):
    for name in ("digits.html", "digits.json"):
        again, report = (told[0] / folder / name for folder in ("again", "reports"))
        assert again.read_bytes() == report.read_bytes()


def test_no_run_that_says_something_is_taken_for_a_cell(reported, told):
    """All else is as it was before anything was said."""
    before, after = (
        json.loads((folder / "reports" / "digits.json").read_text())
        for folder in (reported[0], told[0])
    )
    for one in (before, after):
        del one["comparisons"], one["gates"], one["commands"]
        for scenario in one["scenarios"]:
            del scenario["audit"], scenario["risk"]
    assert before == after


def test_what_nobody_looked_at_is_named_with_its_command(reported, page, told):
    lines = re.findall(r"<li>([^<]*): <code>(.*?)</code></li>", page)
    typed = " ".join(SWEPT_SIZES)
    assert [command for _, command in lines] == [
        f"python -m mico_exp.audit {typed}",
        f"python -m mico_exp.risk {typed}",
        f"python -m mico_exp.compare digits {typed}",
        f"python -m mico_exp.gate max_tpr=0.15 {typed}",
    ]
    assert "Not looked at so far" in page
    assert "Not looked at so far" not in told_page(told[0])
    report = json.loads((reported[0] / "reports" / "digits.json").read_text())
    assert (report["comparisons"], report["gates"]) == ([], [])
    assert {one["risk"] for one in report["scenarios"]} == {None}


def test_records_at_risk_are_those_of_the_csv_file(told):
    page, folder = told_page(told[0]), told[0]
    with (folder / "audits" / "digits_risk.csv").open() as file:
        records = list(csv.DictReader(file))
    shown = rows_of(page, "records")
    for name in SCENARIOS:
        mine = [row for row in records if row["scenario"] == name]
        assert [row[1] for row in shown if row[0] == name] == [row["record"] for row in mine[:5]]
        for row, one in zip((row for row in shown if row[0] == name), mine, strict=False):
            assert row[4] == f"{float(one['tpr']):.3f}"
            assert row[5:8] == [one["rank"], one["low"], one["high"]]
    summaries = [line for line in told[1]["risk"].splitlines() if "are exposed, each" in line]
    assert len(summaries) == 3
    for line in summaries:
        assert f"<li>{line}</li>" in page
    assert "the page is audits/digits_risk.html, all records are in audits/digits_risk.csv" in page
    for column, count in (("class", 10), ("ward", 2)):
        table = re.search(rf"<caption>By {column}:.*?</table>", page, flags=re.S)[0]
        rows = re.findall(r"<tr><td.*?</tr>", table, flags=re.S)
        assert len(rows) == count
        judged = [re.findall(r"of (\d+)</span>", row) for row in rows]
        for place, name in enumerate(SCENARIOS):
            mine = [row for row in records if row["scenario"] == name]
            assert sum(int(row[place]) for row in judged) == len(mine)


def test_the_json_has_what_was_said_by_its_schema(told):
    folder, shown = told
    schema = json.loads((files("mico_exp") / "schemas" / "report.schema.json").read_text())
    report = json.loads((folder / "reports" / "digits.json").read_text())
    Draft202012Validator(schema).validate(report)
    for one in report["scenarios"]:
        assert f"{one['risk']['summary']}\n" in shown["risk"]
        assert sum(one["risk"]["histogram"]) == one["risk"]["records"]
        place = folder / "mlruns" / "digits" / one["risk"]["run"] / "artifacts" / "risk.json"
        logged = json.loads(place.read_text())[one["scenario"]]
        assert {key: one["risk"][key] for key in logged} == logged
    (compared,), (gate,) = report["comparisons"], report["gates"]
    assert compared["verdict"].startswith(shown["compare"].splitlines()[-2])
    assert f"{gate['verdict']}\n" == shown["gate"]
    assert gate["passed"]
    page = told_page(folder)
    for one in (compared, gate):
        assert html.escape(one["verdict"], quote=False) in page
        assert one["when"] in page
        started = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").get_run(one["run"]).info
        assert (
            time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(started.start_time / 1000))
            == (one["when"])
        )


def test_all_that_was_said_in_a_browser(told):
    page = told_page(told[0])
    targets = set(re.findall(r'href="#(\w+)"', page))
    assert {"audit", "risk", "verdicts"} < targets
    assert targets == set(re.findall(r'<section id="(\w+)"', page))
    found, console = probe(told[0], page, width=500, height=900)
    assert not console
    assert found["width"][0] <= found["width"][1]
    assert len(found["images"]) == len(SCENARIOS) + 3
    assert all(complete and width > 300 for complete, width, _ in found["images"])


def test_after_an_audit_every_scenario_has_a_line_of_it_one_without_a_claim_too(told):
    folder, _ = told
    shown = rows_of(told_page(folder), "audits")
    assert [row[0] for row in shown] == SCENARIOS
    assert [row[2] for row in shown] == ["–", "10", "4"]
    audits = json.loads((folder / "audits" / "digits.json").read_text())["scenarios"]
    proven = {one["scenario"]: one["lower"]["epsilon"] for one in audits}
    assert [row[4].partition("<")[0] for row in shown] == [
        f"{proven[one]:.2f}" for one in SCENARIOS
    ]


def test_the_json_is_of_its_schema_and_says_what_the_selection_says(reported):
    folder, *_ = reported
    schema = json.loads((files("mico_exp") / "schemas" / "report.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    told = json.loads((folder / "reports" / "digits.json").read_text())
    Draft202012Validator(schema).validate(told)
    selection = json.loads((folder / "submissions" / "selection_digits.json").read_text())
    for one in told["scenarios"]:
        found = selection["scenarios"][one["scenario"]]
        assert {name: one[name] for name in found} == found
        assert [cell["cell"] for cell in one["cells"]] == CELLS


def test_what_is_documented_can_be_counted_on_disk(reported, page):
    """Shadow models, training records and parameters, and what was tried and was not."""
    told = json.loads((reported[0] / "reports" / "digits.json").read_text())["scenarios"]
    for one in told:
        models = reported[0] / "data" / "digits" / one["scenario"] / "train"
        assert one["adversary"]["has"].startswith(f"{len(list(models.iterdir()))} shadow models")
        state = torch.load(next(models.glob("*/model.pt")), weights_only=True)
        parameters = sum(tensor.numel() for tensor in state.values())
        ratio = one["elements"]["Training data for each parameter"]
        solution = load_scenario(reported[0] / "data", "digits", one["scenario"], SIZES)
        (count,) = {
            int(model.split(SIZES).trained_on(SIZES.records).sum())
            for model in solution.phases["train"]
        }
        assert ratio.startswith(f"{count:,} training records for {parameters:,} parameters")
        assert ratio.endswith(f"{count / parameters:.3g} for each.")
        assert one["tried"]["metrics"] == "confidence, loss"
        assert "lira_online" in one["tried"]["formulas not tried"].split(", ")
        assert "0" not in one["tried"]["formulas not tried"].split(", ")
        final = one["came_out"]["final"]["value"]
        assert f"of 1,000 members {1000 * final:.0f} are told" in one["residual_risk"]
    assert page.count("Impact assessments, and decisions that none was needed") == 3


def test_it_counts_what_the_sweep_extracted(page):
    """Two metrics of one pass: the models of each scenario once, however many cells there are."""
    rows = re.findall(r"<td[^>]*>([^<]*)</td></tr>", page)
    assert "found in the store" not in page
    assert rows.count("15") == 3


def test_it_says_what_the_selection_says(reported, page):
    selection = json.loads((reported[0] / "submissions" / "selection_digits.json").read_text())
    for name in SCENARIOS:
        found = selection["scenarios"][name]
        verdict = found["verdict"]
        row = re.search(rf'<tr><td class="text">{name}</td>.*?</tr>', page, flags=re.S)[0]
        cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
        shown = [re.sub(r"<[^>]*>", " ", cell).split(maxsplit=1) for cell in cells]
        assert shown[1] == [verdict["cell"]]
        final = found["came_out"]["final"]
        for place, value, (low, high) in (
            (2, verdict["tpr"], verdict["tpr_interval"]),
            (3, found["procedure"], found["procedure_interval"]),
            (-1, final["value"], (final["low"], final["high"])),
        ):
            assert [one.strip() for one in shown[place]] == [
                f"{value:.4f}",
                f"{low:.3f} – {high:.3f}",
            ]
        assert selection["contents"][name] in page
        assert [one["cell"] for one in found["cells"]] == CELLS
    for command in re.findall(r"<pre>(.*?)</pre>", page, flags=re.S)[0].strip().splitlines():
        assert command.startswith("python -m mico_exp")
    assert "scenario=inf,hi,lo metric=confidence,loss formula=0,1,2" in page
    assert " ".join(SWEPT) in page
    assert re.search(r"<td>DP-SGD, ε = 10 \(recorded: 9\.99[0-9]+\)</td>", page)
    assert page.count("(recorded:") == 4  # in the protocol and the documentation
    assert "which differs" not in page


@pytest.mark.parametrize(
    ("recorded", "epsilon", "shown"),
    [
        ("", None, "none"),
        ("", 10.0, "DP-SGD, ε = 10"),
        ("3.9922", 4.0, "DP-SGD, ε = 4 (recorded: 3.9922)"),
        ("0.5", 10.0, "DP-SGD, ε = 10 (recorded: 0.5–8, which differs)"),
        ("4", None, "none (recorded: 4–8, which differs)"),
    ],
)
def test_the_recorded_epsilon_stands_beside_the_options(built, tmp_path, recorded, epsilon, shown):
    shutil.copytree(built, tmp_path / "data")
    scenario = load_scenario(tmp_path / "data", "digits", "digits_inf", SIZES)
    for phase, model in scenario.models() if recorded else ():
        odd = phase == "dev" and "differs" in shown
        (model.path / "epsilon").write_text("8.0000\n" if odd else f"{recorded}\n")
    assert report.privacy(scenario, epsilon) == shown


def test_in_a_browser(reported, page):
    found, console = probe(reported[0], page, width=1280)
    assert not console
    assert found["choice"][0] <= found["choice"][1]  # needs no scroll bar
    assert len(found["images"]) == len(SCENARIOS) + 2
    for complete, width, alt in found["images"]:
        assert complete
        assert width > 300
        assert "TPR" in alt
    values = found["before"]
    assert len(values) == len(SCENARIOS) * len(CELLS)
    assert found["once"] == ["descending", sorted(values, key=float, reverse=True)]
    assert found["twice"] == ["ascending", sorted(values, key=float)]
    by_name = sorted(name for name in SCENARIOS for _ in CELLS)
    assert found["names"] == ["ascending", None, by_name]
    assert found["background"] == "rgb(255, 255, 255)"


def test_on_a_phone_and_in_the_dark(reported, page):
    dark = "--blink-settings=preferredColorScheme=0"
    found, console = probe(reported[0], page, dark, width=500, height=900)
    assert not console
    assert found["width"][0] <= found["width"][1]  # wide tables scroll by themselves
    assert found["background"] == "rgb(15, 20, 25)"


def test_on_paper(reported):
    path = reported[0] / "report.pdf"
    address = (reported[0] / "reports" / "digits.html").as_uri()
    open_page(address, f"--print-to-pdf={path}", "--no-pdf-header-footer")
    printed = path.read_bytes()
    assert printed.startswith(b"%PDF")
    assert len(printed) > 50_000


@pytest.fixture(scope="module")
def ui(reported):
    """Address of `mlflow ui` in the user's folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    table_alone = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # else a dozen processes
    command = ["mlflow", "ui", "--workers", "1", "--port", str(port)]
    process = start(*command, cwd=reported[0], **table_alone)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except OSError:
                assert process.is_alive()
                time.sleep(0.25)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.ended(60)


def test_the_runs_table_at_the_printed_address(reported, ui):
    printed = [re.search(r"Runs: (\S+)", text)[1] for text in reported[1:3]]
    assert printed[0] == printed[1]
    address = printed[0].replace("http://127.0.0.1:5000", ui)
    shown, _ = open_page(address, width=2600, milliseconds=30_000)
    text = re.sub(r"<[^>]+>", "\n", shown)
    for column in ("scenario", "metric", "formula", "val/tpr_at_fpr_0.1", "val/auc"):
        assert f"\n{column}\n" in text
    assert "val/tpr_at_fpr_0.1_low" in text
    assert "18\n matching runs" in text
    client = MlflowClient(f"sqlite:///{reported[0] / 'mlflow.db'}")
    cells = client.search_runs(["1"], "tags.kind = 'cell'")
    cells.sort(key=lambda one: -one.data.metrics["val/tpr_at_fpr_0.1"])
    best = cells[0]
    names = [
        line for line in text.split("\n") if line.count("/") == 2 and line[:2] in ("in", "hi", "lo")
    ]
    assert {one.info.run_name for one in cells} == set(names)
    assert best.data.metrics["val/tpr_at_fpr_0.1"] == max(
        one.data.metrics["val/tpr_at_fpr_0.1"] for one in cells if one.info.run_name == names[0]
    )
    page = f"{ui}/#/experiments/1/runs/{best.info.run_id}/artifacts/roc.png"
    shown, _ = open_page(page, milliseconds=30_000)
    assert re.search(r"<img[^>]+(blob:|roc\.png)", shown)


def test_the_sweep_left_its_heatmaps_and_a_run_of_its_own(reported):
    (sweep,) = (reported[0] / "multirun").glob("2*")
    drawn = {path.name for path in sweep.glob("*.png")}
    assert drawn == {f"heatmap_{name}.png" for name in SCENARIOS}
    client = MlflowClient(f"sqlite:///{reported[0] / 'mlflow.db'}")
    (logged,) = client.search_runs(["1"], "tags.kind = 'sweep'")
    assert logged.info.run_name == "sweep"
    assert {one.path for one in client.list_artifacts(logged.info.run_id)} == drawn
    assert logged.data.params["digits_inf/cells"] == "6"


def test_a_run_logs_its_intervals_and_operating_points(reported):
    client = MlflowClient(f"sqlite:///{reported[0] / 'mlflow.db'}")
    for one in client.search_runs(["1"], "tags.kind = 'cell'"):
        metrics = one.data.metrics
        artifacts = {file.path for file in client.list_artifacts(one.info.run_id)}
        assert artifacts == {"config.yaml", "predictions.npz", "roc.png", "scores.png"}
        for phase in ("val", "dev", "final"):
            for x in (0.001, 0.01, 0.05, 0.1, 0.15, 0.2):
                figure = f"{phase}/tpr_at_fpr_{x}"
                assert metrics[f"{figure}_low"] <= metrics[f"{figure}_high"]
                assert metrics[f"{phase}/fpr_below_{x}"] < x
                assert 0 <= metrics[f"{phase}/tied_at_fpr_{x}"] <= 1
            assert metrics[f"{phase}/auc_low"] <= metrics[f"{phase}/auc"]
            assert metrics[f"{phase}/auc"] <= metrics[f"{phase}/auc_high"]
        path = client.download_artifacts(one.info.run_id, "predictions.npz")
        with np.load(path) as found:
            truth, predictions = found["train_solution"], found["train"]
        threshold = metrics["val/threshold_at_fpr_0.1"]
        assert (predictions[truth] >= threshold).mean() == metrics["val/tpr_at_fpr_0.1"]
        assert (predictions[~truth] >= threshold).mean() == metrics["val/fpr_below_0.1"]
        assert (predictions == np.float32(threshold)).mean() == metrics["val/tied_at_fpr_0.1"]
