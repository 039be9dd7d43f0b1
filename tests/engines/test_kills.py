"""Runs that are killed at random moments and gone on with."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TRIALS, PICTURES, SHARD = 20, 24, 2

DRIVER = '''
"""Each trial: children that are killed at a random moment, then one that ends. Forked, so that each starts at once."""
import json, os, random, shutil, signal, sys, time
from pathlib import Path

import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import mmneurons as mmn
from helpers.speaking import make_it_say
from helpers.tiny import tiny_llava
from mmneurons.runs.schema import TABLES, part_folders

folder, trials, shard = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
vlm = mmn.wrap(*tiny_llava())
make_it_say(vlm, "An image of a dog and a ball.")
mmn.find(vlm, next((folder / "photos").iterdir()))  # what is loaded once is loaded here
import pyarrow, mmneurons.sources, mmneurons.engines.local


def child(work):
    """Something in a process of its own. Only children use polars, whose threads do not survive a fork."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            (folder / "died").write_text(repr(error))
            os._exit(1)
        os._exit(0)
    return pid


def running(out):
    return child(lambda: mmn.run(vlm, folder / "photos", out, shard=shard, batch_size=2, maps=2))


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def digest(out):
    def write():
        run = mmn.runs.open(out)
        tables = [run.table(name).collect().drop("seconds", strict=False) for name in TABLES]
        (folder / "digest").write_text(json.dumps([table.write_json() for table in tables]))

    assert ended(child(write)) == 0, (folder / "died").read_text()
    return json.loads((folder / "digest").read_text())


started = time.perf_counter()
assert ended(running(folder / "whole")) == 0, (folder / "died").read_text()
took = time.perf_counter() - started
expected = digest(folder / "whole")
draw = random.Random(0)
results = []
for trial in range(trials):
    out = folder / f"run{trial}"
    kills, shards = 0, []
    while kills < 3:
        pid = running(out)
        time.sleep(draw.uniform(0, took))
        os.kill(pid, signal.SIGKILL)
        if ended(pid) == -signal.SIGKILL:
            kills += 1
        shards.append(len(part_folders(out)))
        if shards[-1] * shard >= len(os.listdir(folder / "photos")):
            if kills:
                break
            shutil.rmtree(out)  # it had ended before it could be killed: once more
    code = ended(running(out))
    results.append({"kills": kills, "shards": shards, "code": code, "same": digest(out) == expected})
    shutil.rmtree(out)
print(json.dumps({"took": took, "trials": results, "rows": [len(json.loads(table)) for table in expected]}))
'''


@pytest.mark.slow
def test_killed_runs_end_with_the_rows_of_an_undisturbed_one(tmp_path):
    (tmp_path / "photos").mkdir()
    noise = np.random.default_rng(0)
    for index in range(PICTURES):
        pixels = noise.integers(0, 256, (40 + index, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index:02d}.png")
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", DRIVER, tests, str(tmp_path), str(TRIALS), str(SHARD)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["rows"][:2] == [PICTURES, 2 * PICTURES]
    trials = report["trials"]
    assert len(trials) == TRIALS
    assert [trial["code"] for trial in trials] == [0] * TRIALS
    assert all(trial["same"] for trial in trials)
    # the kills hit runs at work: in most trials some shards were there, and not all
    assert sum(trial["kills"] > 0 for trial in trials) == TRIALS
    assert sum(any(0 < count < PICTURES // SHARD for count in trial["shards"]) for trial in trials) > TRIALS // 2
