"""`kinbase measure` and the import of its files, in processes of their own."""

import signal
import subprocess
import sys
import time


def test_parts_are_measured_and_imported(cli, family):
    sources = [*family.values(), "--base", family["base"]]
    for part in (1, 2):
        done = cli("measure", *sources, "--part", f"{part}/2", "-o", f"sums-{part}.parquet")
        assert (done.returncode, done.stdout) == (0, "")
        assert f"part {part} of 2 of base and 4 members is in sums-{part}.parquet: " in done.stderr
    again = cli("measure", *sources, "--part", "1/2", "-o", "sums-1.parquet")
    assert again.returncode == 0 and "is in sums-1.parquet already" in again.stderr
    one = cli("import", "sums-1.parquet")
    assert one.returncode == 1
    assert one.stderr == "kinbase: part 2 is missing of 2: measure with `--part 2/2`\n"
    assert cli("ls").returncode == 3  # there is no database yet
    done = cli("import", "sums-1.parquet", "sums-2.parquet")
    assert done.returncode == 0 and "imported merge_ab against base" in done.stderr
    assert "0.355" in cli("kin").stdout


def test_what_cannot_be_measured_is_a_line(cli, family):
    done = cli("measure", family["base"], "nowhere", "--base", family["base"], "-o", "x.parquet")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("kinbase: nowhere cannot be measured: ") and done.stderr.count("\n") == 1
    for wrong in (["--part", "3/2"], ["--part", "0/2"], ["--part", "1"], ["-o", "x.csv"]):
        done = cli("measure", *family.values(), "-o", "x.parquet", *wrong)
        assert done.returncode == 2 and "Traceback" not in done.stderr


def test_a_scheduler_s_signal_keeps_what_is_finished(tmp_path, family):
    program = (
        "import time, kinbase.ingest.family_pass as m\n"
        "run = m.run\n"
        "def slow(plan, **options):\n"
        "    for number, tensor in enumerate(run(plan, **options)):\n"
        "        if number == 3: print('three', flush=True); time.sleep(600)\n"
        "        yield tensor\n"
        "m.run = slow\n"
        "from kinbase.cli import main; main()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, "measure", *map(str, family.values()), "--base", str(family["base"]),
         "-o", "sums.parquet"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout.readline() == "three\n"
    time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130 and err.split() == ["kinbase:", "interrupted"]
    assert sorted(path.name for path in tmp_path.glob("sums*")) == ["sums.parquet.unfinished"]
