"""Records survive what changes no number, and only that: the package's own sources, edited in memory."""
import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

import robustnb
from robustnb.lab.provenance import Package, address_of, closure, sources_in
from robustnb.lab.records import Store

FOLDER = Path(robustnb.__file__).parent
TODAY = sources_in(FOLDER)
BEFORE = Package(TODAY)
FUNCTIONS = (
    "robustnb.papers.study.protocol:run_study_cell", "robustnb.papers.eriep.protocol:run_eriep_cell",
    "robustnb.papers.dem_hec.protocol:run_dem_hec_cell", "robustnb.benchmarks.corruptions:time_corruption"
)


def edited(**changes):  # module -> function from text to text
    "Today's package with other texts."
    modules = dict(TODAY.modules)
    for module, change in changes.items():
        text = change(modules.get(module, ""))
        assert text != modules.get(module), f"nothing changed in {module}"
        modules[module] = text
    return Package(TODAY._replace(modules=modules))


@cache
def addresses(package=None):
    return tuple(address_of(name, {}, package or BEFORE) for name in FUNCTIONS)


@cache
def home(name):
    "The module that defines a name: notebooks may have moved since."
    found = [module for module, text in TODAY.modules.items() if re.search(rf"^(def|class) {name}\b", text, re.M)]
    return min(found, key=len)


def reached(*names):
    "Do the functions meet these definitions? An edit elsewhere would prove nothing."
    met = {where.name for name in FUNCTIONS for where in closure(BEFORE, name).definitions}
    return set(names) <= met


def test_a_docstring_and_a_comment_make_no_record_stale():
    say = lambda text: re.sub(r'^(    )"[A-Z][^"\n]*"$', r'\1"Said otherwise."  # really', text, flags=re.M)
    documented = edited(**{home(name): say for name in ("perturb", "corrupt", "fit")})
    assert reached("perturb", "corrupt", "fit") and addresses(documented) == addresses()


def test_a_rename_makes_no_record_stale():
    name, word = home("check_images"), re.compile(r"\bcheck_images\b")
    users = {
        module: lambda text: word.sub("refuse_other_images", text)
        for module, text in TODAY.modules.items()
        if word.search(text)
    }
    assert name in users and len(users) > 1 and reached("check_images")
    assert addresses(edited(**users)) == addresses()


def test_a_move_to_another_module_makes_no_record_stale():
    module = home("derive_seed")
    text = TODAY.modules[module]
    start = re.search(r"^def derive_seed\b", text, re.M).start()
    end = start + re.search(r"\n(?=[^\s)#])", text[start:]).end()
    imports = "\n".join(line for line in text.splitlines() if re.match(r"(import|from) ", line))
    moved = edited(
        **{
            module: lambda t: t[:start] + "from .elsewhere import derive_seed\n" + t[end:],
            "elsewhere": lambda t: f"{imports}\n\n{text[start:end]}",
        }
    )
    assert reached("derive_seed") and moved.find(module, "derive_seed").module == "elsewhere" and addresses(
        moved
    ) == addresses()


def test_a_new_function_that_nobody_calls_makes_no_record_stale():
    more = {
        module: lambda text: text + '\n\ndef newcomer(x):\n    "Nobody calls it yet."\n    return x * 17\n'
        for module in (home("corrupt"), home("fit"), home("fog"))
    }
    assert addresses(edited(**more)) == addresses()


def today(record):
    "The function of a record, where it is now."
    name = record.function.partition(":")[2]
    return f"robustnb.{home(name)}:{name}"


def met(changed, records, name):
    "Does a change reach exactly the records whose cells name a corruption, or leave the choice open?"
    kinds, words = set(), lambda cell: json.dumps({k: v for k, v in cell.items() if not isinstance(v, (int, float))})
    for record in {(today(r), words(r.cell)): r for r in records}.values():  # a number chooses no definition
        named = [record.cell.get("corruption"), *(record.cell.get("corruptions") or ())]
        stale = address_of(today(record), record.cell, BEFORE) != address_of(today(record), record.cell, changed)
        assert stale == (name in named), f"{record.experiment} {record.key}: {named}"
        kinds.add(stale)
    assert kinds == {True, False}, "the records were all of one kind"


@pytest.mark.parametrize("kind", ["constant in the code", "row of severities.csv"])
def test_a_changed_constant_of_one_corruption_reaches_exactly_the_records_that_met_it(kind):
    if kind == "constant in the code":
        changed = edited(
            **{
                home("fog"): lambda text: re.sub(
                    r"(^def fog\b.*?\n    )(\"[^\n]*\"\n)",
                    r"\1\2    severity = 17\n",
                    text,
                    count=1,
                    flags=re.M | re.S,
                )
            }
        )
    else:
        table = TODAY.assets["severities.csv"].decode()
        rows = [re.sub(r"(,fog,5,)[^,]*", r"\g<1>17", row) for row in table.splitlines(keepends=True)]
        assert "".join(rows) != table
        changed = Package(TODAY._replace(assets={**TODAY.assets, "severities.csv": "".join(rows).encode()}))
    store = Store(FOLDER.parent / "results")
    records = [r for name in ("benchmark-corruptions", "dem-hec", "eriep", "study") for r in store.records(name)]
    met(changed, records, "fog")


def test_a_contributed_corruption_reaches_only_what_names_it():
    "It is found by its module's name: a cell that asks for it is made of it, no other."
    toy = (
        "from ..corruptions import Corruption, register\ndef toy(x): return x * 0.9\n"
        "register(Corruption('toy', toy, {}))\n"
    )
    with_toy, weaker = (
        edited(**{"contrib.toy": lambda _, text=text: text}) for text in (toy, toy.replace("0.9", "0.8"))
    )
    other, own = (
        [address_of(FUNCTIONS[-1], {"corruption": n}, p) for p in (BEFORE, with_toy, weaker)] for n in ("fog", "toy")
    )
    assert len(set(other)) == 1 and len(set(own)) == 3 and not set(other) & set(own)


def test_string_imports_and_assets_are_followed():
    package = Package(TODAY)
    found = closure(package, "robustnb.benchmarks.corruptions:time_corruption")
    assert "severities.csv" in found.assets and not any("papers" in path for path in found.assets)
    assert {w.name for w in found.definitions} >= {
        "corrupt", "REGISTRY", "fog", "severity_table", "sample"
    } and "load" not in {w.name for w in found.definitions}


def test_weights_that_ship_later_reach_only_what_names_them():
    "They are called by the name that code or a cell gives; another network's are another matter."
    function, cells = "robustnb.papers.dem_hec.protocol:run_shipped_cell", [{"weights": "cifar10"}, {"weights": "tea"}]
    def addresses(**files):
        named = {f"weights/{name}.safetensors": content for name, content in files.items()}
        package = Package(TODAY._replace(assets={**TODAY.assets, **named}))
        return [address_of(function, cell, package) for cell in cells]
    now, more, other = addresses(), addresses(**{"resnet20-tea": b"1"}), addresses(**{"resnet20-tea": b"2"})
    changed = addresses(**{"resnet20-cifar10": b"1"})
    assert now[0] == more[0] == other[0] != changed[0]
    assert len({now[1], more[1], other[1]}) == 3


def test_a_check_that_refuses_or_does_nothing_makes_no_record_stale():
    "It ends a run or leaves it as it was; what it gives back is used nowhere."
    found = closure(Package(TODAY), "robustnb.models:read_file").definitions
    assert not any(w.module == "pickles" or w.name == "check_depth" for w in found) and len(found) == 3
    for module in ("models", "training", "epm"):
        tree = ast.parse((Path(robustnb.__file__).parent / f"{module}.py").read_text(encoding="utf-8"))
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
        named = [n for n in calls if getattr(n.func, "id", "") in ("check_pickle", "check_depth")]
        bare = [n.value for n in ast.walk(tree) if isinstance(n, ast.Expr)]
        assert named and all(any(call is one for one in bare) for call in named)
