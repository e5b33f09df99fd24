"""pip-audit's JSON on stdin as a few lines: one for each known vulnerability, and one with the counts."""
import json
import sys


def part(found: dict, name: str) -> str:
    "A field as it is told; of an advisory nothing is sure to be there."
    value = found.get(name) if isinstance(found, dict) else None
    return value if isinstance(value, str) else f"{name} unknown"


def told(text: str) -> list[str]:
    "What pip-audit found, for the log of a build that goes on whatever it was."
    try: found = [dict(d) for d in json.loads(text)["dependencies"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ["warning: pip-audit could not be had, or could not ask"]
    flaws = {i: d["vulns"] for i, d in enumerate(found) if isinstance(d.get("vulns"), list) and d["vulns"]}
    names = lambda vulns: ", ".join(dict.fromkeys(part(v, "id") for v in vulns))
    bad = [f"warning: {part(found[i], 'name')} {part(found[i], 'version')}: {names(v)}" for i, v in flaws.items()]
    unknown = sum("skip_reason" in d for d in found)
    return [
        *bad,
        f"{len(found)} packages: {len(bad)} with known vulnerabilities, "
        f"{unknown} that the index of advisories does not know",
    ]


if __name__ == "__main__": print("\n".join(told(sys.stdin.read())))
