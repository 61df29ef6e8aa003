"""The table of a choice, as a terminal shows it."""

import io

from rich.console import Console

from mico_exp.commands.choosing import Chosen
from mico_exp.commands.select_best import table
from mico_exp.results.selection import Candidate, Selected, Verdict
from mico_exp.results.statistics import Interval


def chosen(others=5, procedure=0.2207):
    nowhere = Interval(0.0, 0.0)
    cells = [
        Verdict(
            "confidence/2", "run", 0.2242, Interval(0.207, 0.244), 0.642, 0, nowhere, 0.61, True
        )
    ]
    cells += [
        Verdict(f"loss/{i}", "run", 0.2, nowhere, 0.6, 0, nowhere, 0, i < 1) for i in range(others)
    ]
    spread = None if procedure is None else Interval(0.198, 0.245)
    best = Candidate("run", "digits_inf", "confidence", "2", 0, "", {})
    came_out = {"dev": {"value": 0.218}, "final": {"value": 0.2368}}
    return Chosen(Selected(best, cells[0], cells, procedure, spread), {}, came_out, {})


def lines(one, width=100):
    console = Console(width=width, file=io.StringIO(), record=True, markup=False)
    console.print(table("digits", {"digits_inf": one}))
    return console.export_text().splitlines()


def cells(line):
    return [text.strip() for text in line.strip("│┃").replace("┃", "│").split("│")]


def test_it_fits_100_columns_and_nothing_is_cut():
    shown = lines(chosen())
    assert not any("…" in line for line in shown)
    heads = [" ".join(parts).strip() for parts in zip(*map(cells, shown[2:4]), strict=True)]
    assert heads == [
        *("scenario", "cell", "validation", "nested estimate", "P(best)", "ties with"),
        *("val AUC", "dev", "final"),
    ]
    value, interval = map(cells, shown[5:7])
    assert value == [
        *("digits_inf", "confidence/2", "0.2242", "0.2207", "61%", "1 of 5"),
        *("0.6420", "0.2180", "0.2368"),
    ]
    assert interval == ["", "", ".207–.244", ".198–.245", *[""] * 5]


def test_where_nothing_was_chosen_there_is_no_estimate_of_a_choice():
    value = cells(lines(chosen(others=0))[5])
    assert value[3:6] == ["–"] * 3
    value = cells(lines(chosen(procedure=None))[5])
    assert value[3:6] == ["–", "61%", "1 of 5"]
