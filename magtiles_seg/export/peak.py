"""How much memory a way of segmenting takes: the peak of a fresh process that does nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from magtiles_seg.errors import InferenceError
from magtiles_seg.export.contestants import Candidate, Case

_STATUS = Path("/proc/self/status")


def peak_mib(candidate: Candidate, case: Case) -> float | None:
    """Return the greatest resident memory in MiB; None where the system does not tell (not Linux).

    Raises:
        InferenceError: The process failed.
    """
    words = json.dumps([{**asdict(candidate), "path": str(candidate.path)}, asdict(case)])
    command = [sys.executable, "-m", "magtiles_seg.export.peak", words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InferenceError(f"measuring the memory of {candidate} failed: {last}")
    return float(done.stdout) if done.stdout.strip() else None


def _main(words: str) -> None:
    way, case = json.loads(words)
    one = Case(**case)
    with Candidate(**{**way, "path": Path(way["path"])}).open() as segmenter:
        for _ in range(2):
            segmenter.batch(one.pictures())
    found = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text()) if _STATUS.exists() else None
    sys.stdout.write(str(int(found[1]) / 1024) if found else "")


if __name__ == "__main__":
    _main(sys.argv[1])
