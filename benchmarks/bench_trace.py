"""The page of a trace: how large it is, how long it takes to open, and to show a token's union.

    python benchmarks/bench_trace.py     appended to results/trace_page.csv

A text of 2,000 tokens by three tiny models with the tokenizers of Llama-3, Qwen2 and Mistral-v0.3 (the folder that
UNITE_TEST_TOKENIZERS names), in headless Chromium (chromium and chromedriver on the PATH).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from bench_decode import load
from lib.measure import RESULTS, append_csv, machine, percentiles

from unite_ext import Trace

TOKENS = 2000
ROUNDS = 7
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
# Moves the focus and lays the page out, as the browser does before it paints.
SHOW = """
const tokens = document.querySelectorAll(".token"), times = [];
for (let i = 0; i < tokens.length; i += 10) {
  const start = performance.now();
  tokens[i].focus();
  document.getElementById("panel").getBoundingClientRect();
  times.push((performance.now() - start) / 1000);
}
return times;
"""
OPENED = """
const [entry] = performance.getEntriesByType("navigation");
return entry.loadEventEnd / 1000;
"""


def browse(page: Path) -> dict[str, list[float]]:
    """Seconds to open the page, and to show a token."""
    from selenium import webdriver

    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
        try:
            opened = []
            for _ in range(ROUNDS):
                browser.get("about:blank")
                browser.get(page.as_uri())
                opened.append(browser.execute_script(OPENED))
            return {"open in Chromium": opened, "show a token": browser.execute_script(SHOW)}
        finally:
            browser.quit()


def timed(call) -> list[float]:
    """Seconds of some calls."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"length of the text (default: {TOKENS})")
    parser.add_argument("--out", type=Path, default=RESULTS / "trace_page.csv", help="CSV file to append to")
    arguments = parser.parse_args()
    n = arguments.tokens
    trace = load(3, "cpu").trace("Once upon a time", max_new_tokens=n, min_new_tokens=n)
    with tempfile.TemporaryDirectory() as folder:
        page, data = Path(folder) / "trace.html", Path(folder) / "trace.json"
        samples = {"write the page": timed(lambda: trace.save(page)), "write the data": timed(lambda: trace.save(data))}
        samples["read the data"] = timed(lambda: Trace.load(data))
        samples |= browse(page)
        sizes = {"write the page": page.stat().st_size, "write the data": data.stat().st_size}
    facts = machine()
    rows = [
        facts | {"members": 3, "tokens": n, "call": call} | percentiles(times) | {"bytes": sizes.get(call, "")}
        for call, times in samples.items()
    ]
    for row in rows:
        print(f"{row['call']:18} {row['p50_us'] / 1e3:10.2f} ms   {row['bytes']}")
    append_csv(arguments.out, rows)


if __name__ == "__main__":
    main()
