"""What is stored in notebooks: nothing of the machine that ran them."""
import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "nbs").rglob("*.ipynb"))
OF_A_MACHINE = re.compile(r"site-packages|ipykernel_\d|(?<![\w.:/])/(?:home|root|work|tmp|Users|private)/\w")


def words(output: dict) -> str:
    "The text of an output, pictures left out."
    data = {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")}
    return "\n".join("".join(part) for part in [output.get("text", []), output.get("traceback", []), *data.values()])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_name_no_machine(path):
    found = [
        m[0]
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        for output in cell.get("outputs", [])
        for m in OF_A_MACHINE.finditer(words(output))
    ]
    assert not found, f"{path.name}: stored outputs name {sorted(set(found))}; mend the warning, or run the cell again"


def test_the_pattern_sees_a_path():
    "A warning as Python prints it is found; a link and a fraction are not."
    assert OF_A_MACHINE.search("/home/ada/lib/x.py:3: FutureWarning") and OF_A_MACHINE.search("/tmp/ipykernel_1/2.py")
    assert not OF_A_MACHINE.search("see https://example.org/home/page and 3/tmp")
