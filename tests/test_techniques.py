"""The survey's bench: a newcomer leaves other records as they are, verdicts follow from answers counted by hand."""
import json
from pathlib import Path

import numpy as np
import pytest

import robustnb
from robustnb.lab.provenance import Package, address_of, sources_in
from robustnb.lab.records import Record, Store, encode
from robustnb.lab.verdicts import verdicts
from robustnb.papers.techniques import domains, errata, protocol
from robustnb.papers.techniques.claims import dropout_error, group_of, planned_cells

RUN = "robustnb.papers.techniques.protocol:run_bench_cell"


def test_a_new_technique_leaves_the_addresses_of_the_others():
    sources = sources_in(Path(robustnb.__file__).parent)
    text = sources.modules["papers.techniques.protocol"]
    more = text.replace('    "fgsm": fgsm_row,\n', '    "mine": mine,\n    "fgsm": fgsm_row,\n').replace(
        "def fgsm_row(cell", "def mine(cell, context): return 3\ndef fgsm_row(cell"
    )
    other = text.replace('AdversarialTraining("fgsm", cell.eps', 'AdversarialTraining("fgsm", 0.5 * cell.eps')
    assert text not in (more, other)
    packages = [
        Package(sources._replace(modules={**sources.modules, "papers.techniques.protocol": t}))
        for t in (text, more, other)
    ]
    found = {
        name: [address_of(RUN, {"technique": name}, package) for package in packages]
        for name in ("standard", "fgsm", "mc_dropout")
    }
    assert all(a == b for a, b, _ in found.values()), "a line in TECHNIQUES made other records stale"
    assert {name for name, (a, _, c) in found.items() if a != c} == {
        "fgsm"
    }, "a change of one technique reaches its own records alone"


def test_cells_have_one_place_and_whole_seeds():
    places = list(planned_cells("reduced").values())
    assert len(set(places)) == len(places) and {seed for *_, seed in places} == {0, 1, 2}
    assert group_of(protocol.BenchCell("net_skip", n_attacked=0)) == ("net", ("net_skip",)) and group_of(
        domains.DomainCell("dann", "mnist_m")
    ) == ("mnist_m", ("dann",))


def bench(store, right):
    "Records of the bench's cells: right(technique, column) is the share of 20 answers that are right."
    for cell in protocol.bench_cells("reduced"):
        if not cell.n_attacked: continue
        arrays = {
            column: (np.arange(20) < 20 * right(cell.technique, column)).astype(np.float32)
            for column in ("clean", "worst", "pgd", "fgsm", "transfer", "loss_fgsm", "loss_pgd")
        }
        store.append(
            Record("techniques", cell, dict(train=1.0), "reduced"), {"answers.npz": encode("answers.npz", arrays)}
        )
    return store


def test_verdicts_by_hand(tmp_path):
    worth = {("pgd", "worst"): 0.5, ("pgd", "pgd"): 0.5, ("fgsm", "fgsm"): 1.0, ("standard", "loss_pgd"): 1.0}
    table = verdicts(
        "techniques", bench(Store(tmp_path), lambda t, c: 0.9 if c == "clean" else worth.get((t, c), 0.0)), "reduced",
        resamples=100
    ).set_index("id")
    assert table.verdict["T-01"] == "holds" and table.verdict["T-03a"] == "holds" and table.verdict["T-03b"] == "fails"
    assert table.verdict["T-04"] == "fails"  # PGD finds a higher loss
    assert table.verdict["T-08a"] == "holds" and table.verdict["T-09"] == "fails" and table.verdict["T-18"] == "fails"
    assert table.verdict["T-14a"] == "not run" and table.verdict["T-26a"] == "not run"
    assert table.provisional["T-01"] and table.n_seeds["T-01"] == 3


def test_slips_by_computation():
    assert dropout_error(0.5) == 0 and dropout_error(0.2) == pytest.approx(0.75) and dropout_error(
        0.3
    ) == pytest.approx(4 / 7)
    assert [row["agrees"] for row in errata.printed_fgsm()] == [False, False, True]
    assert [row["agrees"] for row in errata.one_step()] == [True, False]


def test_the_front_page_says_what_the_records_say():
    from robustnb.papers.techniques.report import best_results, front

    cells = json.loads(Path("nbs/papers/techniques/90_paper.ipynb").read_text())["cells"]
    stored, = [
        "".join(o["data"]["text/markdown"])
        for c in cells
        if c["cell_type"] == "code"
        for o in c["outputs"]
        if "text/markdown" in o.get("data", {})
    ]
    results = best_results(Store("results"))
    assert stored == front(results).data, "records have changed: execute the notebook again"
    assert stored.startswith(f"**{results.profile.capitalize()} run**") and [
        line[:3] for line in stored.splitlines()[2:]
    ] == ["1. ", "2. ", "3. ", "4. ", "5. "]
    assert all("class='interval'" in line for line in stored.splitlines()[2:])
