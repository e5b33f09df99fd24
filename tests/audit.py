"""pip-audit's JSON on stdin as a few lines: one for each known vulnerability, and one with the counts."""
import json
import sys


def told(text: str) -> list[str]:
    "What pip-audit found, for the log of a build that goes on whatever it was."
    try: found = json.loads(text)["dependencies"]
    except (ValueError, KeyError, TypeError): return ["warning: pip-audit could not be had, or could not ask"]
    names = lambda d: ", ".join(dict.fromkeys(v["id"] for v in d["vulns"]))
    bad = [f"warning: {d['name']} {d['version']}: {names(d)}" for d in found if d.get("vulns")]
    unknown = sum("skip_reason" in d for d in found)
    return [
        *bad,
        f"{len(found)} packages: {len(bad)} with known vulnerabilities, "
        f"{unknown} that the index of advisories does not know",
    ]


if __name__ == "__main__": print("\n".join(told(sys.stdin.read())))
