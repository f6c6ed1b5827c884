"""The README's table of results and its picture, from a fresh `make quickstart`.

    python benchmarks/quickstart.py

Runs the quickstart under the run name 'readme', prints the table and the time as Markdown, and, where Chromium is
installed, takes docs/report.png from the report.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tabulate import tabulate

from finetuning.report import COLUMNS, label, shown

ROOT = Path(__file__).parent.parent
RUN_NAME = "readme"


def main() -> None:
    subprocess.run(["make", "setup"], cwd=ROOT, check=True)
    run = ROOT / "runs" / RUN_NAME
    shutil.rmtree(run, ignore_errors=True)
    started = time.monotonic()
    subprocess.run(["make", "quickstart", f"RUN_NAME={RUN_NAME}"], cwd=ROOT, check=True)
    seconds = time.monotonic() - started

    found = json.loads((run / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    rows = [[label(row["stage"]), *(shown(row.get(c.key), c.digits) for c in COLUMNS)] for row in found["rows"]]
    print("\n" + tabulate(rows, ["Stage", *(c.heading for c in COLUMNS)], tablefmt="github", disable_numparse=True))
    print(f"\n{seconds:.0f} seconds")

    if chromium := shutil.which("chromium"):
        picture, page = ROOT / "docs" / "report.png", run / "evaluation" / "report.html"
        picture.parent.mkdir(exist_ok=True)
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1200,1900", f"--screenshot={picture}"]
        subprocess.run([chromium, *options, page.as_uri()], check=True, capture_output=True)


if __name__ == "__main__":
    main()
