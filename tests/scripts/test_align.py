"""`flowrl align` from texts to table, on a made-up corpus and tiny models; resumed, refused, with real weights."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from flowrl.rlhf import Prompt
from flowrl.runs import RunDirectory, save_checkpoint

pytest.importorskip("sklearn")
pytest.importorskip("tyro")
import tyro

from flowrl.rlhf.alignment import Costs
from flowrl.scripts.align import Config, _learning, _options, _parts, _program, _task

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {
    "--data": "generated",
    "--rows": "600",
    "--width": "16",
    "--layers": "1",
    "--vocabulary": "200",
    "--sft-steps": "50",
    "--pairs": "60",
    "--reward-steps": "50",
    "--dpo-steps": "20",
    "--prompts": "6",
    "--validation-prompts": "6",
    "--reference-samples": "4",
    "--length": "6",
    "--particles": "4",
    "--best-of": "2 4",
    "--steps": "1 2",
    "--step-sizes": "1",
}
TINY = [word for name, value in OPTIONS.items() for word in (name, *value.split())]


def run(*options, fails=False):
    # A process of its own: float32, as a user runs it.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [sys.executable, "-m", "flowrl.scripts", "align", *map(str, options)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == fails, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def config(*options):
    return tyro.cli(Config, args=[str(option) for option in options])


def rows(path):
    with (path / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    base = tmp_path_factory.mktemp("rlhf")
    out = run(*TINY, "--methods", "sft", "bon", "dpo", "vgf", "--out", base / "run", "--data-dir", base / "data")
    return base, out


@pytest.mark.thorough
def test_table_has_every_method_and_budget(whole):
    base, out = whole
    table = rows(base / "run")
    names = [row["name"] for row in table]
    flows = ["VGF, L = 0", "VGF, ε = 1, L = 1", "VGF, ε = 1, L = 2"]
    assert names[:-1] == ["SFT", "best-of-2", "best-of-4", "DPO", "DPO, best-of-4", *flows]
    assert re.fullmatch(r"best-of-\d+, VGF's cost", names[-1])
    assert [row["chosen"] for row in table if row["method"] == "vgf"].count("True") == 1
    zero = next(row for row in table if row["name"] == "VGF, L = 0")
    assert float(zero["changed"]) == 0
    for row in table:
        assert 0 <= float(row["win_low"]) <= float(row["win"]) <= float(row["win_high"]) <= 1
        assert len(json.loads(row["wins"])) == 6
        assert 0 <= float(row["win_people"]) <= 1
    # What was chosen is timed by itself, and stands beside the samples that cost as much.
    chosen = next(row for row in table if row["chosen"] == "True")
    assert float(chosen["seconds"]) > 0
    assert float(table[-1]["forwards"]) >= float(chosen["forwards"])
    # The samples of a smaller N are the first ones of a larger N.
    by_name = {row["name"]: json.loads(row["texts"]) for row in table}
    assert any(a == b for a, b in zip(by_name["SFT"], by_name["best-of-2"], strict=True))
    proxies = {row["name"]: float(row["proxy"]) for row in table}
    assert proxies["VGF, ε = 1, L = 2"] > proxies["VGF, L = 0"] > proxies["SFT"]
    assert (base / "run" / "curve.png").stat().st_size > 1000
    assert {"code", "device", "matmul_precision"} < json.loads((base / "run" / "software.json").read_text()).keys()
    assert "held-out correlation" in out


@pytest.mark.thorough
def test_resume_after_the_last_method_changes_nothing(whole):
    base, _ = whole
    before = (base / "run" / "metrics.csv").read_bytes()
    (base / "run" / "results.csv").unlink()
    run(*TINY, "--methods", "sft", "bon", "dpo", "vgf", "--out", base / "run", "--data-dir", base / "data", "--resume")
    assert (base / "run" / "metrics.csv").read_bytes() == before
    assert len(rows(base / "run")) == 9


@pytest.mark.thorough
def test_another_run_in_the_same_directory_is_refused(whole):
    base, _ = whole
    said = run(*TINY, "--methods", "sft", "--out", base / "run", "--data-dir", base / "data", fails=True)
    assert "--resume" in said


def test_a_missing_package_is_named_before_anything_is_computed(monkeypatch, tmp_path):
    monkeypatch.setattr(_program, "NEEDED", ("json", "no_such_package"))
    with pytest.raises(ImportError, match=r"^no_such_package is needed here.*flowrl-transport\[rlhf\]"):
        _program.main(Config(out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--steps 2 1", "increasing"),
        ("--step-sizes 0", "--step-sizes"),
        ("--step-sizes 1 1", "--step-sizes"),
        ("--methods", "--methods"),
        ("--best-of 0", "--best-of"),
        ("--flow ascent --temperature 1", "svgd"),
        ("--width 20", "multiple of 16"),
        ("--model x", "--reward-model"),
        ("--mu smollm2", "beyond a CPU"),
        ("--prompts 0", "--prompts"),
        ("--dropout 1.5", "--dropout"),
        ("--variety 2", "--variety"),
        ("--seed -5", "--seed"),
        ("--model x --reward-model y --prompt-file z --mu smollm2 --methods sft", "--mu"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(SystemExit, match=message):
        _options.check(config(*options.split()))


def test_every_option_is_part_of_the_identity_of_a_run():
    """By its own name, once: two groups cannot have an option of one name."""
    identity = Config().identity()
    groups = (Config().inputs, Config().learning, Config().budget, Config().evaluation)
    names = [name for group in groups for name in vars(group)]
    assert len(set(names)) == len(names)
    assert set(identity) == {"seed", *names} - {"samples"}  # how many texts are printed changes no result
    assert config("--seed", 3, "--variety", 0.5).identity() == identity | {"seed": 3, "variety": 0.5}


def test_what_another_run_left_is_not_taken(tmp_path):
    mine = Config().learned_from()
    other = Config(seed=1).learned_from()
    assert config("--prompts", 7).learned_from() != mine  # the texts are split in another way
    more_prompts = config("--particles", 3, "--space", "token", "--out", "elsewhere").learned_from()
    template = jnp.zeros(2)
    save_checkpoint(tmp_path / "reward.npz", jnp.ones(2), {"of": mine, "seconds": 1.5})
    assert _learning.stored(tmp_path / "reward.npz", template, other) is None
    assert _learning.stored(tmp_path / "reward.npz", template, more_prompts)[0].tolist() == [1, 1]
    assert _learning.stored(tmp_path / "none.npz", template, mine) is None


def test_what_other_options_left_blocks_nothing(tmp_path):
    """Arrays of another width do not fit the template, and need not."""
    mine = Config().learned_from()
    other = config("--width", 32).learned_from()
    save_checkpoint(tmp_path / "reward.npz", {"more": jnp.ones(3)}, {"of": other, "seconds": 1.5})
    with RunDirectory(tmp_path, {}) as run:
        made = _learning.kept(run, "reward", jnp.zeros(2), lambda: (jnp.ones(2), 2.5), mine)
    assert (made[0].tolist(), made[1]) == ([1, 1], 2.5)
    assert _learning.stored(tmp_path / "reward.npz", jnp.zeros(2), mine)[1] == 2.5


@pytest.mark.parametrize("cut", [True, False])
def test_a_damaged_file_is_put_aside_and_made_again(tmp_path, cut):
    mine = Config().learned_from()
    path, made = tmp_path / "reward.npz", []

    def make():
        made.append(1)
        return jnp.ones(2), 2.5

    with RunDirectory(tmp_path, {}) as run:
        _learning.kept(run, "reward", jnp.zeros(2), make, mine)
        content = path.read_bytes()
        numbers = content.index(np.ones(2).tobytes())
        damaged = content[:-40] if cut else content[:numbers] + b"?" + content[numbers + 1 :]
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match=r"reward\.npz: .* put aside as reward\.npz\.damaged, and made again"):
            value, _ = _learning.kept(run, "reward", jnp.zeros(2), make, mine)
    assert (tmp_path / "reward.npz.damaged").read_bytes() == damaged
    assert value.tolist() == [1, 1]
    assert len(made) == 2
    assert path.read_bytes() == content


def real_model(folder, name):
    """A tiny Llama as it comes from elsewhere: config.json, safetensors, tokenizer.json."""
    tokenizers = pytest.importorskip("tokenizers")
    shutil.copytree(ROOT / "tests" / "rlhf" / "reference_models" / name, folder)
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    words = tokenizers.models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


#: A judge that prefers the longer text.
LONGER = """
import json, sys
for line in sys.stdin:
    row = json.loads(line)
    print(json.dumps({"id": row["id"], "first": float(len(row["first"]) > len(row["second"]))}))
"""


def real_options(tmp_path):
    models = [real_model(tmp_path / name, name) for name in ("llama", "llama_reward")]
    judge = tmp_path / "judge.py"
    judge.write_text(LONGER)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"w{i} w{i + 1} w{i + 2}"}) + "\n" for i in range(1, 9)))
    options = {
        "--model": models[0],
        "--reward-model": models[1],
        "--prompt-file": prompts,
        "--out": tmp_path / "run",
        "--methods": "sft bon vgf",
        "--space": "logit",
        "--prompts": 4,
        "--validation-prompts": 4,
        "--reference-samples": 3,
        "--length": 5,
        "--particles": 3,
        "--best-of": 3,
        "--steps": "1",
        "--step-sizes": 1,
        "--judge": f"{sys.executable} {judge}",
    }
    return models, [word for name, value in options.items() for word in (name, *str(value).split())]


def test_a_chat_model_reads_prompts_in_its_template(tmp_path):
    pytest.importorskip("jinja2")
    home = ROOT / "tests" / "rlhf" / "reference_texts"
    given = json.loads((home / "reference.json").read_text())["chat"]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": row["given"]}) + "\n" for row in given))
    options = {"--model": home / "chat", "--reward-model": home / "reward", "--prompt-file": file}
    options |= {"--prompts": 3, "--validation-prompts": 1, "--prompt-length": 64, "--length": 4}
    task = _task.make_task(config(*(word for pair in options.items() for word in pair)), tmp_path, lambda *_: None)
    for batch, rows in ((task.test, given[:3]), (task.validation, given[3:])):
        read = [
            t[m].tolist() for t, m in zip(np.asarray(batch.prompt.tokens), np.asarray(batch.prompt.mask), strict=True)
        ]
        assert read == [row["prompt"] for row in rows]
    assert task.validation.texts[0].endswith("user: the cast?\n\nassistant:")
    assert task.sampler.end == (283, 284)
    assert task.decode([[84, 82, 284]], [[True, True, True]]) == [task.tokenizer.decode([84, 82])]


@pytest.mark.thorough
def test_real_weights_need_no_gold(tmp_path):
    out = run(*real_options(tmp_path)[1])
    table = rows(tmp_path / "run")
    assert [row["name"] for row in table][:3] == ["SFT", "best-of-3", "VGF, L = 0"]
    assert all(row["win"] == "" and row["gold"] == "" for row in table)
    assert float(table[-2]["proxy"]) > float(table[0]["proxy"])
    assert "w1 w2 w3" in out
    assert all(0 <= float(row["win_judged"]) <= 1 for row in table)


@pytest.mark.thorough
def test_a_reward_that_is_no_number_is_named(tmp_path):
    numpy_files = pytest.importorskip("safetensors.numpy")
    models, options = real_options(tmp_path)
    file = models[1] / "model.safetensors"
    weights = dict(numpy_files.load_file(file))
    weights["score.weight"] = np.full_like(weights["score.weight"], 3e38)  # finite, its sums are not
    numpy_files.save_file(weights, file)
    assert "FloatingPointError: the reward model gives no finite number for " in run(*options, fails=True)


def test_preferences_of_one_prompt_are_in_one_part():
    asked = np.random.default_rng(0).integers(0, 50, 400)
    held = _learning.held_out(asked, np.random.default_rng(1))
    assert not set(asked[held]) & set(asked[~held])
    assert len(set(asked[held])) == 5


def test_every_purpose_and_seed_has_a_key_of_its_own():
    purposes = ("test", "validation", "comparison", "preferences", "dpo", "ppo")
    keys = [_options.key_of(Config(seed=seed), purpose) for seed in range(3) for purpose in purposes]
    assert len({tuple(jr.key_data(key).tolist()) for key in keys}) == len(keys)


def test_costs_are_those_by_hand():
    # S = 100 weights of the reference, R = 20 of the reward, a table of 5; 2 tokens of prompt, 3 of response.
    costs = Costs(100.0, 20.0, 5.0, prompt=2, response=3)
    unit = 5 * 100
    best = ((2 + 4 * 3) * 100 + 4 * 5 * 20) / unit
    assert costs.best_of(4) == pytest.approx(best)
    samples, read, table = (2 + 4 * 3) * 100, 5 * 20, 3 * 5
    # Two steps there and back; to know which of them to keep, the rewards at the start, after each step, at the end.
    by_space = {
        "reference": (2 * samples + 4 * 2 * (2 * read + table), read),
        "logit": (samples + 4 * 2 * (2 * read + 2 * table), read + table),
        "logit-reference": (2 * samples + 4 * 2 * (2 * read + 2 * table), read + table),
        "token": (4 * 2 * (2 * read + table), read + table),
        "token-prior": (samples + 4 * 2 * (2 * read + table), read + table),
    }
    for space, (more, value) in by_space.items():
        assert costs.flow(space, 4, steps=2, rising=False) == pytest.approx(best + more / unit), space
        assert costs.flow(space, 4, steps=2, rising=True) == pytest.approx(best + (more + 16 * value) / unit), space
        assert costs.flow(space, 4, steps=0, rising=True) == pytest.approx(best)
    assert costs.best_of(costs.matched(7.3)) >= 7.3 > costs.best_of(costs.matched(7.3) - 1)


def test_prompts_are_worked_on_in_parts_of_one_size():
    count = 120
    prompt = Prompt(jnp.arange(count)[:, None], jnp.ones((count, 1), bool))
    batch = _task.Batch(tuple(map(str, range(count))), prompt)
    sizes = []

    def program(prompts, part):
        sizes.append(len(prompts.tokens))
        return prompts.tokens[:, 0] * 10, jnp.full(len(prompts.tokens), part)

    parts = _parts.Parts()
    (values, part), seconds = parts("name", batch, program)
    assert values.tolist() == [10 * i for i in range(count)]
    assert part.tolist() == [i // 50 for i in range(count)]
    assert seconds > 0
    assert sizes == [50] * 4  # once to compile
    parts("name", batch, program)
    assert len(sizes) == 7
