"""`kvist eval`: what was done is kept and not done again, and what cannot be run is named."""

import json
import os
import xml.etree.ElementTree as ET
from base64 import b64decode
from dataclasses import asdict
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import kvist
import numpy as np
import pytest
import torch
from kvist.eval import main, models, options, report, runner, stats
from kvist.eval.decode import Decoder, batches
from kvist.eval.models import Model
from kvist.eval.options import TAIL, Settings
from kvist.eval.records import FILE, Results
from kvist.eval.tasks import TASKS
from kvist.hf import KvistCache
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parents[3]
MODELS = Path(os.environ.get("KVIST_MODELS_DIR", ROOT / ".cache" / "models"))
LENGTH = 1024


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Steps this small only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny():
    """A random model with a real tokenizer: what is tested is the wiring, not what it says."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=48, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "smollm2-135m")
    return Model("tiny", LlamaForCausalLM(config).eval(), tokenizer, "0")


def settings(tasks=("needle", "vt"), samples=3, **more):
    return Settings(
        **{
            "tasks": tuple(tasks),
            "selectors": ("boxed", "quest"),
            "budgets": (Fraction(1, 8), 600),
            "lengths": (LENGTH,),
            "samples": dict.fromkeys(tasks, samples),
            "dense_layers": (0,),
            **more,
        }
    )


def run(model, directory, wanted):
    with Results(directory) as results:
        runner.run(model, wanted, results)
        return results


def answers(results):
    """Everything but the order."""
    return {(r.run, r.rule, r.sample): r for r in results.records}


def assert_same(some, others):
    """Up to rounding: what is decoded together may decide the last bits."""
    assert some.keys() == others.keys()
    for key, record in some.items():
        got, want = asdict(record), asdict(others[key])
        assert got == {
            k: pytest.approx(v, rel=1e-4, abs=1e-6) if isinstance(v, float) else v
            for k, v in want.items()
        }


@pytest.fixture
def calls(tiny):
    """The model's calls; it gives up after `calls.most`, if that is set."""

    class Calls(list):
        most = None

    calls = Calls()

    def count(*_):
        calls.append(1)
        if calls.most is not None and len(calls) > calls.most:
            raise KeyboardInterrupt

    handle = tiny.model.register_forward_pre_hook(count)
    yield calls
    handle.remove()


def test_what_is_done_is_not_done_again(tiny, tmp_path, calls):
    first = run(tiny, tmp_path, settings())
    assert calls and len(first.records) == 2 * 3 * 6
    assert {r.select for r in first.records} == {"full", "boxed", "quest", "no text"}
    del calls[:]
    again = run(tiny, tmp_path, settings())
    assert not calls and answers(again) == answers(first)
    more = run(tiny, tmp_path, settings(samples=4))
    assert calls and len(more.records) == 2 * 4 * 6
    assert answers(first).items() <= answers(more).items()


@pytest.mark.parametrize("most", [2, 40])
def test_an_interrupted_run_goes_on(tiny, tmp_path, calls, most):
    whole = run(tiny, tmp_path / "whole", settings())
    assert len(calls) > most
    del calls[:]
    calls.most = most
    with pytest.raises(KeyboardInterrupt):
        run(tiny, tmp_path / "parts", settings())
    calls.most = None
    assert_same(answers(run(tiny, tmp_path / "parts", settings())), answers(whole))


@pytest.mark.parametrize("cut", [1, 60])
def test_a_cut_last_line_is_dropped_and_made_again(tiny, tmp_path, cut):
    whole = run(tiny, tmp_path, settings())
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.warns(UserWarning, match="the last line was cut; it is dropped"):
        again = run(tiny, tmp_path, settings())
    assert_same(answers(again), answers(whole))


def test_a_damaged_line_is_left_out_and_made_again(tiny, tmp_path):
    whole = run(tiny, tmp_path, settings())
    path = tmp_path / FILE
    lines = path.read_bytes().splitlines()
    lines[7], lines[9] = b'{"run": 1}', b"\xff\x00" + lines[9][5:]
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.warns(UserWarning, match="is damaged; it is left out") as seen:
        again = run(tiny, tmp_path, settings())
    assert [str(w.message).split(" is ")[0][-7:] for w in seen] == ["line 8 ", "line 10"] or len(
        seen
    ) == 2
    assert_same(answers(again), answers(whole))


def test_other_settings_are_another_run(tiny, tmp_path):
    first = run(tiny, tmp_path, settings(["needle"]))
    other = run(tiny, tmp_path, settings(["needle"], seed=1))
    assert len(other.records) == 2 * len(first.records)
    assert {r.samples for r in stats.summarise(other)} == {3}
    # The one that was asked for last is the one that is reported.
    back = run(tiny, tmp_path, settings(["needle"]))
    assert len(back.records) == len(other.records)
    assert [s["seed"] for s in stats.current(back).values()] == [0]


def test_one_process_writes(tiny, tmp_path):
    with Results(tmp_path), pytest.raises(kvist.InUseError, match="another `kvist eval`"):
        Results(tmp_path)
    with Results(tmp_path):
        pass


def test_a_budget_of_everything_is_full_attention(tiny, tmp_path):
    results = run(tiny, tmp_path, settings(TASKS, 1, budgets=(Fraction(1),), lengths=(1536,)))
    full = {(r.run, r.sample): r for r in results.records if r.select == "full"}
    assert len(full) == len(TASKS)
    for record in results.records:
        same = full[record.run, record.sample]
        if record.select == "no text":
            assert record.kl > 0 and record.tokens_read == 0 and record.generated is None
        else:
            assert (record.score, record.generated) == (same.score, same.generated)
            assert record.kl == pytest.approx(0, abs=1e-6) and record.agree == 1
            assert record.tokens_read == same.tokens_read
            assert 0 <= record.score <= 1


def test_less_is_read_with_less_budget(tiny, tmp_path):
    results = run(tiny, tmp_path, settings(["needle"], samples=12))
    read = {row.label: row for row in stats.summarise(results)}
    # Three layers, one of them dense.
    for name in ("boxed", "quest"):
        tokens = (2 * (LENGTH // 8) + read["full"].tokens_read) / 3
        assert read[f"{name} 1/8"].tokens_read == pytest.approx(tokens, rel=0.1)
        assert read[f"{name} 1/8"].kl[0] > read[f"{name} 600"].kl[0] > 0
        assert read["full"].bytes_read > read[f"{name} 600"].bytes_read
        assert read[f"{name} 600"].bytes_read > read[f"{name} 1/8"].bytes_read
    token = 2 * 2 * 12 * 4 * 3  # K and V, KV heads, dim, f32, layers
    assert read["full"].bytes_read == pytest.approx(token * read["full"].tokens_read)


def test_questions_decoded_together_are_answered_as_alone(tiny):
    maker = runner.Maker(runner.corpus.Corpus(tiny.tokenizer), 0)
    document = TASKS["needle"].document(maker, LENGTH, 0)
    decoder = Decoder(tiny.model, tiny.stop, "1GiB")
    read = decoder.prefill(document.context, (), lambda _: None)
    rules = [kvist.selection("full"), kvist.selection("quest", 200), kvist.selection("boxed", 300)]

    def ask(rules, questions):
        got = dict(decoder.answer(read, document.context[-TAIL:], rules, questions))
        assert sorted(got) == list(range(len(questions)))
        return got

    together = ask(rules, document.questions)
    assert max(map(len, batches(document.questions, 20))) > 2
    for i, question in enumerate(document.questions):
        for answer, rule in zip(together[i], rules, strict=True):
            (alone,) = ask([rule], [question])[0]
            assert torch.allclose(answer.log_probs, alone.log_probs, atol=1e-4)
            assert answer.generated == alone.generated
            assert answer.tokens_read == pytest.approx(alone.tokens_read, rel=0.01)
            assert answer.bytes_read == pytest.approx(alone.bytes_read, rel=0.01)


def test_every_selector_there_is_can_be_measured(tiny, tmp_path):
    own = ("boxed(planes=2, budget=1/4)", "boxed(top_p=0.5)", "streaming(sinks=8, budget=100)")
    wanted = settings(["needle"], samples=1, selectors=("all", *own), budgets=(Fraction(3, 4),))
    with pytest.warns(UserWarning, match="left out: ") as left:
        results = run(tiny, tmp_path, wanted)
    names = {preset["name"] for preset in kvist.selection_presets()}
    found = {(r.select, r.budget): r for r in results.records}
    assert {w.message.args[0].split(": ")[1] for w in left} == {"budget 3/4 of length 1024"}
    assert any("scores must be one for every" in str(w.message) for w in left)
    assert len(names & {select for select, _ in found}) == len(names) - len(left)
    full = found["full", None]
    for (select, budget), record in found.items():
        if select not in ("full", "no text"):
            assert 0 < record.tokens_read < full.tokens_read, (select, budget)
            assert record.kl > 0, (select, budget)
    assert {("boxed(planes=2)", 256), ("boxed(top_p=0.5)", None), ("streaming(sinks=8)", 100)} < {
        *found
    }


def test_what_looks_back_reads_the_document_itself(tiny, tmp_path, calls):
    assert options.looks_back(kvist.Select("infinigen"), LENGTH)
    assert not options.looks_back(kvist.Select("snapkv", budget=300), LENGTH)
    document = TASKS["needle"].document(
        runner.Maker(runner.corpus.Corpus(tiny.tokenizer), 0), LENGTH, 0
    )
    rule = kvist.Select("infinigen")
    results = run(tiny, tmp_path, settings(["needle"], samples=1, selectors=("infinigen()",)))
    (got,) = [r for r in results.records if r.select == "infinigen"]
    question = document.questions[0]
    with KvistCache.for_model(tiny.model, select=rule, dense_layers=(0,)) as cache:
        for ids in (document.context[:-TAIL], document.context[-TAIL:]):
            tiny.model(torch.tensor([ids]), past_key_values=cache)
        tokens, said = (*question.prompt, *question.answer), []
        for token, after in pairwise(tokens):
            with torch.inference_mode():
                logits = tiny.model(torch.tensor([[token]]), past_key_values=cache).logits
            said.append(float(logits[0, -1].log_softmax(-1)[after]))
        read = cache.report().tokens_read
    assert got.tokens_read == pytest.approx(read, rel=1e-3)
    answer = said[-len(question.answer) :]
    assert got.log_prob == pytest.approx(sum(answer) / len(answer), abs=1e-4)


# --- Statistics and the report -------------------------------------------------------------------


def test_intervals():
    assert stats.wilson(5, 5) == pytest.approx((1, 0.5655, 1), abs=1e-4)
    assert stats.wilson(8, 10) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    middle, low, high = stats.paired(0, 2, 20)
    assert middle == pytest.approx(-0.1) and low < -0.1 < high
    assert stats.paired(0, 0, 20)[0] == 0 and stats.paired(0, 0, 20)[1] < 0
    values, each = np.linspace(0, 1, 40), np.arange(40)
    middle, low, high = stats.bootstrap(values, each)
    assert middle == 0.5 and 0.38 < low < 0.45 and 0.55 < high < 0.62
    assert stats.bootstrap(values, each) == (middle, low, high)
    # Questions of one document only: they are all there is to resample.
    assert stats.bootstrap(values, each * 0) == (middle, low, high)


def test_questions_about_one_document_count_less_the_more_they_agree():
    documents = np.repeat(np.arange(10), 20)
    alike = np.repeat(np.arange(10) % 2, 20).astype(float)
    mixed = np.tile([0.0, 1.0], 100)
    # Twenty copies of ten answers: as good as ten (the variance of ten, over that of 200).
    assert stats.design_effect(alike, documents) == pytest.approx(20 * (199 / 200) / (9 / 10))
    assert stats.design_effect(mixed, documents) == 1 == stats.design_effect(alike, np.arange(200))
    assert stats.design_effect(alike, documents * 0) == 1
    assert stats.design_effect(np.ones(200), documents) == 1
    none = np.zeros(200)
    for binary in (True, False):
        wide, narrow = (stats.mean(v, documents, binary) for v in (alike, mixed))
        assert wide[0] == narrow[0] == 0.5
        assert wide[2] - wide[1] > 0.4 and narrow[2] - narrow[1] < 0.15
        wide, narrow = (stats.difference(v, none, documents, binary) for v in (alike, mixed))
        assert wide[0] == narrow[0] == 0.5
        assert wide[2] - wide[1] > 0.4 and narrow[2] - narrow[1] < 0.15


def test_the_report_has_every_row(tiny, tmp_path):
    run(tiny, tmp_path, settings(["needle", "mvalue", "lm"], samples=2))
    run(tiny, tmp_path, settings(["needle"], samples=2, lengths=(1536,)))
    with Results(tmp_path) as results:
        files = report.write(results, tmp_path)
        rows = stats.summarise(results)
    assert [p.name for p in files] == ["report.html", "summary.md", "summary.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([FILE, *(p.name for p in files)])
    assert len(rows) == 4 * 6
    table = json.loads(files[2].read_text())
    for line, row in zip(table["lines"], rows, strict=True):
        assert line["params"]["select"] == row.select and line["repeats"] == row.samples == 2
        assert line["columns"]["score"] == pytest.approx(list(row.score), rel=1e-5)
        assert line["value"] == line["columns"]["score"][0]
    assert {"cpu", "cores", "date", "version"} < set(table["machine"])
    assert {run["length"] for run in table["runs"]} == {1536, LENGTH}
    lines = [line for line in files[1].read_text().splitlines() if line.startswith("| ")]
    assert len(lines) == len(rows) + 2 * 2
    page = files[0].read_text()
    pictures = page.split("data:image/svg+xml;base64,")[1:]
    assert len(pictures) == 2 * 2 + 2
    for picture in pictures:
        assert ET.fromstring(b64decode(picture.partition('"')[0])).tag.endswith("svg")
    assert page.count("<tr") == len(rows) + 2
    assert "http" not in page.replace("http://www.w3.org", "")


def test_no_results_make_no_report(tmp_path, capsys):
    assert main(["--out", str(tmp_path), "--report-only"]) == 0
    assert "no results yet" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


# --- The command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args, message",
    [
        (
            ["--task", "nedle"],
            "unknown task 'nedle', did you mean 'needle'?; there are: needle, mkey",
        ),
        (["--select", "boxd"], 'unknown selector "boxd", did you mean "boxed"?'),
        (["--model", "smolm2"], "unknown model 'smolm2', did you mean 'smollm2'?"),
        (["--model", str(ROOT)], "no model in"),
        (
            ["--budget", "1/60", "--length", "4096"],
            "budget 1/60 of length 4096: boxed: budget must be",
        ),
        (["--budget", "5000"], "budget: expected at most the length 4096, found 5000"),
        (["--budget", "3/2"], "budget: expected tokens (512) or a share above 0 and at most 1"),
        (["--budget", "0"], "budget: expected tokens (512) or a share"),
        (["--length", "8193"], "length: expected at most 8192 tokens for this model, found 8193"),
        (["--length", "100"], "length: expected at least 512 tokens for needle, found 100"),
        (["--length", "4k"], "length: expected numbers with commas between, found '4k'"),
        (["--samples", "needle=0"], "samples: expected a number or TASK=NUMBER, found 'needle=0'"),
        (["--samples", "needl=3"], "unknown task 'needl', did you mean 'needle'?"),
        (["--samples", "mkey=3"], "samples: expected a number for needle, found 'mkey=3'"),
        (["--select", "boxed(planes=2"], "select: expected NAME or NAME(KEY=VALUE, ...)"),
        (["--select", "boxed(plans=2)"], 'unknown setting "plans", did you mean "planes"?'),
        (["--select", "dsa"], "budget 1/8 of length 4096: scores must be one for every 1 tokens"),
        (["--select", "full(budget=64)"], "budget: expected none with select 'full'"),
        (["--select", "boxed(planes=9)"], "planes"),
        (["--threads", "0"], "threads: expected at least 1, found 0"),
        (["--dense-layers", "99"], "dense_layers: expected 0..30, found 99"),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, monkeypatch, args, message):
    monkeypatch.chdir(ROOT)
    given = ["--out", str(tmp_path / "out"), "--task", "needle", "--samples", "1", *args]
    assert main(given) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_directory_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--out", str(tmp_path / "file" / "out"), "--report-only"]) == 1
    assert "out: expected a directory that can be written, found" in capsys.readouterr().err
    assert main(["--report-only"]) == 1
    assert "out: expected a directory for results, found none" in capsys.readouterr().err


def test_tasks_and_selectors_are_listed(capsys):
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in [*TASKS, "boxed", "quest", "full"])


def test_budgets_and_lists():
    assert options.parse_budget("1/16") == Fraction(1, 16) == options.parse_budget("0.0625")
    assert options.parse_budget("512") == 512 and options.parse_budget("1/1") == Fraction(1)
    assert options.parse_list("boxed, boxed(planes=2,budget=64),") == [
        "boxed",
        "boxed(planes=2,budget=64)",
    ]
    assert options.parse_samples("7,vt=2,lm=1", ["vt", "needle"], TASKS) == {"vt": 2, "needle": 7}


def test_the_real_model_finds_needles_in_what_was_selected(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KVIST_MODELS_DIR", str(MODELS))
    args = ["--length", "1024", "--task", "needle", "--samples", "12", "--budget", "1/4"]
    assert main(["--out", str(tmp_path), "--select", "boxed", *args]) == 0
    assert str(tmp_path / "report.html") in capsys.readouterr().out
    lines = json.loads((tmp_path / "summary.json").read_text())["lines"]
    rows = {line["params"]["select"]: line["columns"] for line in lines}
    assert set(rows) == {"full", "boxed", "no text"}
    assert rows["full"]["score"][0] >= 0.5 and rows["no text"]["score"][0] <= 0.1
    assert rows["full"]["generated"][0] >= rows["full"]["score"][0]
    assert rows["boxed"]["kl"][0] < 0.1 < rows["no text"]["kl"][0]
    assert rows["boxed"]["lost"][0] < 0.5 < rows["no text"]["lost"][0]
    assert rows["boxed"]["tokens_read"] < 0.4 * rows["full"]["tokens_read"]


def test_names_of_models_are_directories(tmp_path, monkeypatch):
    monkeypatch.setenv("KVIST_MODELS_DIR", str(tmp_path))
    with pytest.raises(kvist.OptionError, match=r"run `KVIST_GEMMA=1 make models`"):
        models.find("gemma3")
    (tmp_path / "gemma3-270m").mkdir()
    (tmp_path / "gemma3-270m" / "config.json").write_text("{}")
    assert (
        models.find("gemma3")
        == tmp_path / "gemma3-270m"
        == models.find(str(tmp_path / "gemma3-270m"))
    )
