"""Tables that none can mistake: the printed number as printed, a reduced run as such, nothing from elsewhere."""
import html.parser
from dataclasses import replace

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")

from robustnb import resampling
from robustnb.lab import report as lab_report
from robustnb.papers.study import report
from robustnb.lab.verdicts import paper_table, verdicts
from robustnb.papers.study.claims import StudyFacts, study_tables
from robustnb.lab.records import Record, State, Store, encode
from robustnb.statistics import coefficients, holm, spearman
from robustnb.papers.study.protocol import GRIDS, study_cells


class Parsed(html.parser.HTMLParser):
    "Tags in balance, text of the cells, what would be fetched."

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.fetched = [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        if tag != "br": self.open.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href") or "url(" in (value or "")]
        if tag == "tr": self.rows.append([])
        if tag in ("td", "th"): self.rows[-1].append("")

    def handle_endtag(self, tag): assert self.open.pop() == tag

    def handle_data(self, data):
        assert "script" not in self.open
        if {"td", "th"} & set(self.open): self.rows[-1][-1] += data

    def column(self, name): return [row[self.rows[0].index(name)] for row in self.rows[1:]]


def store_of(folder, factor="gaussian", profile="quick", right=lambda level: 0.5, images=500):
    store = Store(folder)
    clean = [] if factor in ("dual", "four") else [0.0]
    for level in (*clean, *GRIDS[profile][factor]):
        c = (np.arange(images) < images * right(level)).astype(np.uint8)
        counts = dict(test=np.ones(images, np.uint8), c=c, a_fixed=c, a_white=1 - c, n_levels=np.array(1))
        cell = dict(net="lenet5", factor=factor if level else "clean", level=level, seed=0, mode="add")
        store.append(Record("study", cell, dict(train=0.99), profile), {"counts.npz": encode("counts.npz", counts)})
    return store


def results_by_reading(store, profile="quick"):
    return {
        title: StudyFacts(store.records("study"), store, profile, reading, 100)
        for title, reading in {"fixed": "fixed", "white box": "white_box"}.items()
    }


def test_a_table_of_the_study_prints_the_papers_numbers_as_printed(tmp_path):
    rises = lambda level: [0.5, 0.6, 0.55, 0.7, 0.8, 0.75, 0.9][[0.0, *GRIDS["quick"]["gaussian"]].index(level)]
    all_results = results_by_reading(store_of(tmp_path, right=rises))
    parsed = Parsed(report.correlation_table(all_results, "gaussian", caption="Made up").data)
    printed = paper_table("study_table2", True).query("model == 'LeNet-5'")
    theirs, ours = slice(0, None, 2), slice(1, None, 2)  # the rows alternate
    assert [cell[:5] for cell in parsed.column("r")[theirs]] == [*printed.r, printed.r.iloc[-1]] and parsed.column(
        "variance"
    )[theirs] == [*printed.variance, printed.variance.iloc[-1]]
    levels = [0.0, *GRIDS["quick"]["gaussian"]]
    r, p = spearman(levels, [rises(level) for level in levels])
    found = parsed.column("r")[ours]
    assert found[1].startswith(f"{r:.3f} [") and found[3].startswith(f"−{r:.3f} [")
    below = [cell.partition("Holm ")[2].partition(";")[0] for cell in parsed.column("p")[ours]]
    assert found[0] == "not defined" and below[0] == ""  # MNIST-Test is 1 throughout: no test
    assert float(below[1]) == pytest.approx(holm([p, p, p])[0], abs=6e-4)
    assert found[1].endswith("high") and parsed.column("r")[0].endswith("weak") and len(
        parsed.rows[0]
    ) == 6 and parsed.fetched == []
    said = parsed.column("verdict")[ours]
    # high is not the paper's low; the sign is wrong
    assert said[0] == "not run" and said[1].startswith("fails") and said[3].startswith("fails")
    assert "provisional" in said[1]


def test_printed_rows_line_up_with_the_numbers():
    rows = report.printed_rows()
    assert len(rows) == 42 and rows.index.is_unique
    for number, text in (("r", "r"), ("p", "p")):
        assert (rows[text].astype(float).to_numpy() == study_tables()[number].to_numpy()).all()


def test_the_multiple_correlation_has_its_chance_level_and_signs(tmp_path):
    store = store_of(tmp_path, "dual", right=lambda level: 0.3 + 0.04 * level[1] - 0.02 * level[0])
    all_results = results_by_reading(store)
    found = report.multiple_statistics(all_results["fixed"], "lenet", "dual", "c")
    assert found["signs"] == "Gaussian −, FGSM +" and found["n"] == 9 and found["R"] > 0.99
    slopes = coefficients(all_results["fixed"].levels("dual"), all_results["fixed"].array("lenet", "dual", "c")[:, 0])[
        1:
    ]
    assert np.allclose(slopes, [-0.02, 0.04], atol=0.003)
    parsed = Parsed(report.multiple_table(all_results, "dual").data)
    assert [cell[:5] for cell in parsed.column("R, paper")[1:]] == ["0.105", "0.653", "0.653"] and parsed.column(
        "p, paper"
    )[2] == "1.00·10−4"


def test_fgsm_has_a_mean_of_the_paper_for_each_segment(tmp_path):
    store = store_of(tmp_path, "fgsm", right=lambda level: 0.4 + level / 40)
    all_results = results_by_reading(store)
    figure = report.level_figure(all_results, "fgsm", "l2 distance")
    dashed = [
        (tuple(line.get_xdata()), line.get_ydata()[0])
        for line in figure.axes[3].get_lines()
        if line.get_linestyle() == "--"
    ]
    assert dashed == [((0.0, 8.0), 0.737), ((8.5, 12.0), 0.676)]
    rows = Parsed(report.correlation_table(all_results, "fgsm").data).column("")
    # two levels of quick are no series
    assert rows[0] == "MNIST-Test, segment I, paper" and "segment II" not in " ".join(rows)
    few = report.page_series([r for r in store.records("study") if r.cell["level"] in (0.0, 4.0)], store, "quick")
    assert "Not run: lenet fgsm: no seed has all" in report.correlation_table(few, "fgsm").data
    matplotlib.pyplot.close(figure)


def test_records_of_other_seeds_and_nets_are_shown_and_other_protocols_are_not(tmp_path):
    store, cells = Store(tmp_path), study_cells("rq3", "quick", nets=("lenet5", "alexnet8"), seeds=(0, 4))
    for cell in (
        *cells, replace(cells[1], epochs=10), replace(cells[1], data="sample"), *study_cells("rq4", "quick")[1:]
    ):
        store.append(Record("study", cell, {}, "quick"))
    found = report.study_records(store, "quick", "rq3")
    assert len(found) == len(cells) == 20 and {r.cell["seed"] for r in found} == {0, 4} and {
        r.cell["net"] for r in found
    } == {"lenet5", "alexnet8"}
    assert len(report.study_records(store, "quick", "rq3", "rq4")) == 25 and report.study_records(
        store, "full", "rq3"
    ) == []
    assert {r.cell["seed"] for r in report.study_records(store, "quick", "rq4")} == {0}  # seed 4: the clean model alone


def test_smoke_pages_stop_at_a_distance_that_any_net_can_be_tested_at():
    assert {cell.eval_levels for q in ("rq3", "rq5") for cell in report.page_cells(q, "smoke")} == {(2.0, 4.0, 8.0)}
    assert report.page_cells("rq3", "full", ["lenet5"], [2]) == study_cells(
        "rq3", "full", seeds=(2,)
    ) and report.page_cells("rq1", "quick") == study_cells("rq1", "quick")


def test_a_difference_in_words_never_passes_noise_for_an_effect(tmp_path):
    draws = np.random.default_rng(0)
    store, levels = Store(tmp_path), [0.0, *GRIDS["quick"]["gaussian"]]
    for level in levels:
        counts = dict(test=(draws.random(500) < 0.9), c=np.arange(500) < 250 + 20 * level, n_levels=np.array(1))
        counts |= dict(a_fixed=counts["test"], a_white=~counts["c"])
        cell = dict(net="lenet5", factor="gaussian" if level else "clean", level=level, seed=0, mode="add")
        store.append(
            Record("study", cell, dict(train=0.99), "quick"),
            {"counts.npz": encode("counts.npz", {k: v.astype(np.uint8) for k, v in counts.items()})}
        )
    results = results_by_reading(store)["fixed"]
    assert "no difference that we can tell" in lab_report.format_difference(
        report.change(results, "lenet", "gaussian", "test", 2.0)
    )
    found = report.change(results, "lenet", "gaussian", "c", 12.0)
    assert found.value == pytest.approx(0.48) and lab_report.format_difference(found).startswith("gains 0.480")
    assert report.best_level(results, "lenet", "gaussian", "c") == (12.0, [12.0]) and len(
        report.best_level(results, "lenet", "gaussian", "test")[1]
    ) > 3
    back = report.change(results, "lenet", "gaussian", "c", 0.0, 12.0)
    assert back.value == -found.value and back.low == pytest.approx(-found.high)


def test_nothing_measured_says_so(tmp_path):
    all_results = results_by_reading(store_of(tmp_path))
    for empty in (report.correlation_table(all_results, "fgsm"), report.multiple_table(all_results, "four")):
        assert "Not run" in empty.data
    assert "Not run" in lab_report.banner([], "full").data and "No records" in lab_report.provenance_line([]).data


def test_a_reduced_run_says_so_in_words():
    made = [
        Record(
            "study", dict(seed=seed), {}, "quick", seconds=30, time=f"2026-02-0{seed + 1}T00:00:00.000Z",
            device=dict(cpu="some <processor>")
        )
        for seed in range(3)
    ]
    texts = {profile: lab_report.banner(made, profile).data for profile in ("smoke", "quick", "full")}
    assert "Quick" in texts["quick"] and "Smoke" in texts["smoke"] and "Reduced" not in texts["full"]
    assert "3 models" in texts["quick"] and "3 seeds" in texts["quick"] and "2026-02-01 to 2026-02-03" in texts["quick"]
    for text in texts.values(): Parsed(text)


def test_a_long_declaration_is_folded(monkeypatch):
    reason = "Nothing but <b>names</b> has changed. " + "And here is why, at length. " * 20
    monkeypatch.setattr(lab_report, "state", lambda record: State("declared", reason.strip()))
    made = [Record("study", dict(seed=seed), {}, "full") for seed in range(2)]
    for shown in (lab_report.banner(made, "full"), lab_report.provenance_line(made)):
        line, _, folded = shown.data.partition("<details>")
        assert "2 declared (Nothing but &lt;b&gt;names&lt;/b&gt; has changed. …)" in line and "at length" not in line
        assert folded.count("And here is why") == 20 and "<b>" not in folded
        Parsed(shown.data)
    monkeypatch.setattr(lab_report, "state", lambda record: State("attested", "3 canaries"))
    assert "<details>" not in lab_report.banner(made, "full").data


def test_verdicts_are_words_and_claims_are_escaped(tmp_path):
    found = verdicts("study", store_of(tmp_path), finding="F1", resamples=20)
    parsed = Parsed(lab_report.verdict_table(found).data)
    assert len(parsed.rows) - 1 == found.id.nunique() and set(map(len, parsed.rows)) == {5}
    words = {word for cell in parsed.column("ours") for word in lab_report.COLOURS if cell.startswith(word)}
    assert "not run" in words and len(words) > 1
    row = dict(
        id="X", claim="<script>alert(1)</script>", in_print="", reading="fixed", verdict="holds", share=1.0, n_seeds=3,
        provisional=False
    )
    assert "<script>" not in lab_report.verdict_table(pd.DataFrame([row])).data


def test_beside_keeps_what_was_not_run_and_refuses_what_the_paper_has_not():
    frame = lab_report.beside({"a": "80.0", "b": "70.00"}, {"a": resampling.Estimate(81.5, 81.0, 82.0, 3)})
    assert frame.difference.tolist()[0] == 1.5 and frame.verdict.tolist() == ["", "not run"]
    parsed = Parsed(lab_report.beside_table(frame, "In percent").data)
    assert parsed.column("paper") == ["80.0", "70.00"] and parsed.column("difference") == [
        "+1.500", ""
    ] and parsed.column("ours")[1] == ""
    with pytest.raises(ValueError, match="known: a, b"):
        lab_report.beside({"a": 1, "b": 2}, {"zzz": resampling.Estimate(1, 1, 1, 1)})


def test_the_figure_shows_ours_and_the_papers_mean(tmp_path):
    figure = report.level_figure(
        results_by_reading(store_of(tmp_path, right=lambda level: 0.4 + level / 40)), "gaussian", "l2 distance"
    )
    c = figure.axes[2]
    drawn = {line.get_label(): line for line in c.get_lines()}
    assert np.allclose(
        drawn["ours"].get_ydata(), [0.4 + level / 40 for level in (0.0, *GRIDS["quick"]["gaussian"])], atol=0.002
    )
    assert set(drawn["paper, mean of the curve"].get_ydata()) == {0.866} and c.get_xlabel() == "l2 distance"
    matplotlib.pyplot.close(figure)
