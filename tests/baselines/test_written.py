"""Written prompts: drawn by seed, in the window, the same words for every method, evaluated like everything else."""

import dataclasses
import json

import pytest
from backbones import make
from toy import run_config, save_backbone, save_task

from foreword.backbone import load_backbone
from foreword.baselines.saved import read_baseline
from foreword.baselines.written import WrittenPrompt, WrittenSpec, choose_examples, written_format
from foreword.cli import main
from foreword.data.examples import encode_source, get_format
from foreword.data.records import Record
from foreword.errors import ArtifactError, ConfigError
from foreword.evaluate.job import evaluate
from foreword.evaluate.subject import load_subjects
from foreword.tasks import get_task
from foreword.tasks.task import GenerationLimits
from foreword.train.job import resume, train
from foreword.train.rehearse import rehearse

RECORDS = [Record(f"source {i}", (f"first {i}", f"second {i}"), str(i)) for i in range(20)]
LABELLED = [Record(f"s{i}", ("no" if i % 5 else "yes",), str(i)) for i in range(50)]
LIMITS = GenerationLimits(max_new_tokens=5)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    return save_backbone(root / "backbone"), save_task(root / "task")


def written_run(toy, run_dir, shots, **changes):
    return run_config(*toy, run_dir, method="written", written={"shots": shots}, steps=None, **changes)


def test_the_draw_and_the_order_are_the_seeds():
    spec = WrittenSpec(shots=5)
    first = choose_examples(RECORDS, spec, 1)
    assert first == choose_examples(RECORDS, spec, 1)
    others = [choose_examples(RECORDS, spec, seed) for seed in range(2, 8)]
    assert first not in others
    pairs = {(record.source, target) for record in RECORDS for target in record.targets}
    for chosen in (first, *others):
        assert len(set(chosen)) == 5 and set(chosen) <= pairs
        assert len({source for source, _ in chosen}) == 5
    assert any(target.startswith("second") for chosen in others for _, target in chosen)
    two_orders = {choose_examples(RECORDS[:2], WrittenSpec(shots=2), seed)[0][0] for seed in range(20)}
    assert two_orders == {"source 0", "source 1"}


def test_labels_are_balanced_unless_they_are_not_to_be():
    for seed in range(5):
        targets = [t for _, t in choose_examples(LABELLED, WrittenSpec(shots=6), seed, ("yes", "no"))]
        assert (targets.count("yes"), targets.count("no")) == (3, 3)
    orders = {tuple(t for _, t in choose_examples(LABELLED, WrittenSpec(shots=6), s, ("yes", "no"))) for s in range(9)}
    assert len(orders) > 1  # the labels do not stand in a fixed order
    loose = [choose_examples(LABELLED, WrittenSpec(shots=6, balanced=False), s, ("yes", "no")) for s in range(20)]
    assert {sum(t == "yes" for _, t in chosen) for chosen in loose} != {3}


def test_more_shots_than_sources_are_refused():
    with pytest.raises(ConfigError, match=r"written\.shots = 21 but there are 20 different sources"):
        choose_examples(RECORDS, WrittenSpec(shots=21), 0)
    with pytest.raises(ConfigError, match=r"written\.shots = -1"):
        WrittenSpec(shots=-1)
    with pytest.raises(ConfigError, match=r"data\.format = 'paper' does not go with method 'written'"):
        written_format("paper", False)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bart", "bloom"])
def test_examples_stand_before_the_question_in_the_models_format(family):
    backbone = make(family)
    form = written_format(None, backbone.is_encoder_decoder)
    prompt = WrittenPrompt((("ab", "x"), ("cd", "y")))
    (row,) = prompt.rows(backbone, ["ef"], form, None, 4)
    assert prompt.text == "ab\nx\n\ncd\ny\n\n"
    assert row.source == encode_source(backbone.tokenizer, prompt.text + "ef", form)
    (bare,) = WrittenPrompt().rows(backbone, ["ef"], form, None, 4)
    assert bare.source == encode_source(backbone.tokenizer, "ef", form)


def test_every_row_fits_the_window_and_the_nearest_examples_stay():
    backbone = make("llama")
    prompt = WrittenPrompt(tuple((f"{i}" * 9, "t") for i in range(8)))
    form, new_len = get_format("plain"), 6
    whole = prompt.rows(backbone, ["q" * 5], form, None, new_len)[0].source
    each = len(backbone.tokenizer("0" * 9 + "\nt\n\n", add_special_tokens=False).input_ids)
    for window in (len(whole) + new_len, len(whole) + new_len - 1, 3 * each + 12, 12, 11):
        backbone.geometry = dataclasses.replace(backbone.geometry, max_positions=window)
        row = prompt.rows(backbone, ["q" * 5], form, None, new_len)[0].source
        kept = (len(row) - 6) // each
        assert len(row) + new_len <= window + (window == 11)  # the question alone is 6 tokens: it is never cut here
        assert len(row) + new_len + each > window or kept == 8
        text = "".join(f"{s}\n{t}\n\n" for s, t in prompt.examples[8 - kept :]) + "q" * 5
        assert row == encode_source(backbone.tokenizer, text, form)
    assert kept == 0


def test_a_long_question_is_cut_and_the_examples_are_not():
    backbone, prompt = make("llama"), WrittenPrompt((("ab", "x"),))
    (row,) = prompt.rows(backbone, ["q" * 50], get_format("plain"), 7, 4)
    (alone,) = WrittenPrompt().rows(backbone, ["q" * 50], get_format("plain"), 7, 4)
    assert len(alone.source) == 7
    assert len(row.source) == 7 + len(backbone.tokenizer("ab\nx\n\n", add_special_tokens=False).input_ids)


def test_a_newline_ends_an_answer(tmp_path):
    backbone = load_backbone("foreword-decoder-6m", device="cpu")
    stops = WrittenPrompt().stop_ids(backbone)
    assert stops[0] == backbone.tokenizer.eos_token_id
    assert all("\n" in backbone.tokenizer.decode([i]) for i in stops[1:])
    held = {i for i in range(len(backbone.tokenizer)) if "\n" in backbone.tokenizer.decode([i])}
    assert set(stops[1:]) == held - {stops[0]} and held
    assert WrittenPrompt().answer(" a b\nc") == "a b"
    assert WrittenPrompt().answer("\n c") == ""


@pytest.mark.parametrize("shots", [0, 3])
def test_a_run_takes_no_step_and_is_evaluated_like_any_other(toy, shots, tmp_path, capsys):
    config = written_run(toy, tmp_path / "run", shots, data={"words": "say:"}, seed=5)
    result = train(config, progress=False)
    assert (result.steps, result.prompt) == (0, None)
    saved = read_baseline(result.artifact_dir)
    assert [path.name for path in result.artifact_dir.iterdir()] == ["foreword.json"]
    examples = [tuple(pair) for pair in saved.content["examples"]]
    known = {(f"say: {r.source}", t) for r in get_task(config.task).load("train") for t in r.targets}
    assert len(examples) == shots and set(examples) <= known
    plain, subject = load_subjects(config.run_dir)
    assert subject.backbone is plain.backbone and subject.name == f"written{shots}"
    (row,) = subject._rows(["abc"], LIMITS)
    text = "".join(f"{source}\n{target}\n\n" for source, target in examples) + "say: abc"
    assert row.source == encode_source(subject.backbone.tokenizer, text, get_format("plain"))
    assert plain._rows(["abc"], LIMITS)[0].source == encode_source(
        plain.backbone.tokenizer, "abc", get_format("paper")
    )
    found = evaluate(config.run_dir, split="dev", resamples=0)
    assert found.forgetting.unchanged
    assert main(["evaluate", str(result.artifact_dir), "--task", config.task, "--split", "dev"]) == 0
    assert f"written{shots}" in capsys.readouterr().out


def test_the_same_run_again_and_a_resumed_one_give_the_same_bytes(toy, tmp_path):
    runs = [train(written_run(toy, tmp_path / name, 4), progress=False) for name in ("a", "b")]
    resumed = resume(tmp_path / "a", progress=False)
    files = [(run.artifact_dir / "foreword.json").read_bytes() for run in (*runs, resumed)]
    assert files[0] == files[1] == files[2]
    other = train(written_run(toy, tmp_path / "c", 4, seed=9), progress=False)
    assert read_baseline(other.artifact_dir).content != read_baseline(runs[0].artifact_dir).content


def test_the_words_of_a_written_prompt_are_the_words_of_the_others(toy, tmp_path):
    words = {"data": {"words": "say:"}, "steps": 1}
    train(run_config(*toy, tmp_path / "lora", method="lora", **words), progress=False)
    train(written_run(toy, tmp_path / "written", 0, data={"words": "say:"}), progress=False)
    asked = [load_subjects(tmp_path / name)[1] for name in ("lora", "written")]
    texts = [one.backbone.tokenizer.decode(one._rows(["abc"], LIMITS)[0].source) for one in asked]
    assert all("say: abc" in text for text in texts)


def test_a_rehearsal_runs(toy, tmp_path):
    seen = rehearse(written_run(toy, tmp_path / "run", 2))
    assert (seen.num_parameters, seen.init) == (0, "2 examples, nothing to train")


def test_examples_that_are_no_pairs_are_refused(toy, tmp_path):
    result = train(written_run(toy, tmp_path / "run", 1), progress=False)
    manifest = result.artifact_dir / "foreword.json"
    tree = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**tree, "content": {"examples": [["one"]]}}))
    with pytest.raises(ArtifactError, match="no list of pairs"):
        load_subjects(result.artifact_dir)


def test_a_rehearsal_draws_from_all_records_as_the_run_does(toy, tmp_path):
    seen = rehearse(written_run(toy, tmp_path / "run", 9))  # more than the rows that a rehearsal tries
    assert seen.init == "9 examples, nothing to train" and len(seen.examples) == 4
    with pytest.raises(ConfigError, match=r"written\.shots = 41"):
        rehearse(written_run(toy, tmp_path / "run", 41))
