"""Bad input, one kind a case: one line on stderr that names the field or file, the value and the fix; exit code 2;
nothing written, nothing changed."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from backbones import make
from safetensors.torch import load_file, save_file

from foreword.cli import main

Words = list[object]
Case = Callable[["Bench"], Words]


class Bench:
    """A folder to break things in, with copies of the shared place's parts on demand."""

    def __init__(self, place, root: Path) -> None:
        self.place, self.root = place, root
        self.backbone, self.recipe = place.backbone, place.recipe
        self.artifact = place.run / "artifact"

    def train(self, *words: object) -> Words:
        return ["train", self.recipe, "--out", self.root / "out", *words]

    def generate(self, *words: object) -> Words:
        return ["generate", "ab", "--backbone", self.backbone, "--max-new-tokens", 2, *words]

    def file(self, name: str, text: str) -> Path:
        path = self.root / name
        path.write_text(text, encoding="utf-8")
        return path

    def task(self, rows: str, extra: str = "", data: str = "rows.jsonl") -> Path:
        """A task whose training file holds `rows`."""
        self.file(data, rows)
        text = f'name: t\nsource: "{{word}}"\ntarget: "{{answer}}"\ntrain: {data}\nmetrics: [exact_match]\n{extra}'
        return self.file("task.yaml", text)

    def prompt(self) -> Path:
        """A copy of the trained prompt."""
        return Path(shutil.copytree(self.artifact, self.root / "prompt"))

    def run(self) -> Path:
        """A copy of the finished run."""
        return Path(shutil.copytree(self.place.run, self.root / "run"))

    def manifest(self, change: Callable[[dict], None]) -> Path:
        """A copy of the prompt with its manifest changed."""
        path = self.prompt() / "foreword.json"
        tree = json.loads(path.read_text())
        change(tree)
        path.write_text(json.dumps(tree))
        return path.parent

    def weights(self, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
        """A copy of the prompt with its tensors changed."""
        path = self.prompt() / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
        return path.parent


GOOD_ROW = '{"word": "ab", "answer": "ba"}\n'
CASES: dict[str, tuple[Case, tuple[str, ...]]] = {}


def case(*signs: str) -> Callable[[Case], Case]:
    """Register a kind of bad input; every sign must occur in the message."""

    def add(build: Case) -> Case:
        CASES[build.__name__] = (build, signs)
        return build

    return add


# --- words of the command line


@case("command", "'trian'", "'train'")
def unknown_command(b):
    return ["trian"]


@case("--tsak", "--task")
def unknown_option(b):
    return ["train", "--tsak", "e2e"]


@case("--prompt.length", "prompt.length=VALUE")
def field_given_as_option(b):
    return b.train("--prompt.length", "5")


@case("COMMAND", "--help")
def no_command(b):
    return []


@case("--seed", "'x'")
def option_of_the_wrong_type(b):
    return b.train("--seed", "x")


@case("texts", "--input")
def no_text_to_generate_from(b):
    return ["generate", "--backbone", b.backbone]


@case("2 prompts for 1 texts", "one for all")
def prompts_that_do_not_match_texts(b):
    return b.generate("--prompt", b.artifact, "--prompt", b.artifact)


# --- configuration


@case("task", "--task")
def missing_field(b):
    return ["train", f"backbone.source={b.backbone}", "--out", b.root / "out"]


@case("prompt.lenght", "'length'")
def unknown_field(b):
    return b.train("prompt.lenght=5")


@case("optimm", "optim")
def unknown_group(b):
    return b.train("optimm.lr=1")


@case("prompt.length = 0", "at least 1")
def length_zero(b):
    return b.train("prompt.length=0")


@case("prompt.length", "'five'", "int")
def value_of_the_wrong_type(b):
    return b.train("prompt.length=five")


@case("prompt.kind", "'prefex'", "'prefix'")
def unknown_choice(b):
    return b.train("prompt.kind=prefex")


@case("'prompt.length'", "field.path=value")
def override_without_a_value(b):
    return b.train("prompt.length")


@case("steps = -3", "positive")
def negative_steps(b):
    return b.train("steps=-3")


@case("steps", "epochs")
def two_lengths_of_training(b):
    return b.train("epochs=2")


@case("nowhere.yaml", "does not exist")
def missing_recipe(b):
    return ["train", b.root / "nowhere.yaml"]


@case("broken.yaml", "not valid YAML")
def recipe_that_is_not_yaml(b):
    return ["train", b.file("broken.yaml", "task: [e2e\n")]


@case("empty.yaml", "not a mapping")
def empty_recipe(b):
    return ["train", b.file("empty.yaml", "")]


@case("layers", "0 to 2")
def layer_that_the_backbone_lacks(b):
    return b.train("prompt.layers=[7]")


@case("encoder", "decoder")
def stack_that_the_backbone_lacks(b):
    return b.train("prompt.stacks=[encoder]")


@case("init.text", "words")
def init_without_its_words(b):
    return b.train("prompt.init.name=words")


@case("prompt.length = 9000", "512")
def prompt_longer_than_the_backbone(b):
    return b.train("prompt.length=9000")


@case("run_dir", "--resume")
def run_directory_that_is_taken(b):
    return ["train", b.recipe, "--out", b.run()]


@case("dtype", "'float31'", "'float32'")
def unknown_dtype(b):
    return b.train("backbone.dtype=float31")


@case("prompt.layers", "at least one layer")
def no_layer(b):
    return b.train("prompt.layers=[]")


@case("seed = -1", "from 0")
def negative_seed(b):
    return b.train("--seed", "-1")


@case("prompt.init.text=[a", "quotes")
def override_that_is_not_yaml(b):
    return b.train("prompt.init.text=[a")


@case("'steps'", "twice")
def field_given_twice_in_a_recipe(b):
    return ["train", b.file("twice.yaml", b.recipe.read_text() + "steps: 9\n"), "--out", b.root / "out"]


@case("init.std = nan", "finite")
def standard_deviation_that_is_no_number(b):
    return b.train("prompt.init.std=.nan")


@case("data.max_source = 0", "at least 1")
def truncation_of_the_whole_source(b):
    return b.train("data.max_source=0")


@case("dev.metric = 'bleu'", "loss")
def dev_metric_that_nobody_computes(b):
    return b.train("dev.every=4", "dev.metric=bleu")


# --- backbones


@case("'no-such-backbone'", "bundled")
def unknown_backbone(b):
    return b.train("--backbone", "no-such-backbone")


@case("config.json",)
def folder_without_a_model(b):
    (b.root / "hollow").mkdir()
    return b.train("--backbone", b.root / "hollow")


@case("cannot be loaded")
def truncated_backbone_weights(b):
    folder = Path(shutil.copytree(b.backbone, b.root / "cut"))
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    return b.train("--backbone", folder)


@case("NaN", "embed_tokens")
def backbone_with_nan_weights(b):
    folder = Path(shutil.copytree(b.backbone, b.root / "nan"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][3, 3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return b.train("--backbone", folder)


@case("backbone", "learned on")
def prompt_on_another_backbone(b):
    other = make("llama", seed=1)
    other.model.save_pretrained(b.root / "other")
    other.tokenizer.save_pretrained(b.root / "other")
    return ["generate", "ab", "--backbone", b.root / "other", "--prompt", b.artifact]


# --- tasks and data


@case("'e3e'", "'e2e'")
def unknown_task(b):
    return b.train("--task", "e3e")


@case("'bleuu'", "metric")
def unknown_metric(b):
    task = b.task(GOOD_ROW)
    task.write_text(task.read_text().replace("exact_match", "bleuu"))
    return ["evaluate", b.artifact, "--task", task, "--split", "train"]


@case("split", "'tset'", "'test'")
def unknown_split(b):
    return ["evaluate", b.place.run, "--split", "tset"]


@case("limit = 0", "from 1")
def evaluation_of_nothing(b):
    return ["evaluate", b.place.run, "--limit", 0]


@case("gone.jsonl", "does not exist")
def missing_data_file(b):
    fields = 'name: t\nsource: "{word}"\ntarget: "{answer}"\ntrain: gone.jsonl\nmetrics: [exact_match]\n'
    task = b.file("task.yaml", fields)
    return b.train("--task", task)


@case("rows.jsonl", "no rows")
def empty_data_file(b):
    return b.train("--task", b.task(""))


@case("rows.jsonl", "line 2", "JSON")
def line_that_is_not_json(b):
    return b.train("--task", b.task(GOOD_ROW + '{"word": "cd", \n'))


@case("'answer'", "'anser'")
def missing_column(b):
    return b.train("--task", b.task('{"word": "ab", "anser": "ba"}\n'))


@case("empty", "answer")
def empty_target(b):
    return b.train("--task", b.task(GOOD_ROW + '{"word": "cd", "answer": " "}\n'))


@case("rows.jsonl", "line 2", "UTF-8")
def data_that_is_not_utf8(b):
    task = b.task(GOOD_ROW)
    (b.root / "rows.jsonl").write_bytes(GOOD_ROW.encode() + b'{"word": "\xff", "answer": "b"}\n')
    return b.train("--task", task)


@case("'{word'", "brace")
def template_with_an_open_brace(b):
    task = b.task(GOOD_ROW)
    task.write_text(task.read_text().replace('"{word}"', '"{word"'))
    return b.train("--task", task)


@case("record 1 of train", "positions", "512", "data.max_source")
def text_longer_than_the_backbone(b):
    return b.train("--task", b.task(json.dumps({"word": "a" * 600, "answer": "b"}) + "\n"))


@case("tokens", "budget")
def row_longer_than_the_token_budget(b):
    return b.train("batch.rows=null", "batch.tokens=3")


@case("max_target", "1")
def truncation_to_nothing(b):
    return b.train("data.max_target=1")


@case("text format", "'papre'", "'paper'")
def unknown_text_format(b):
    return b.train("data.format=papre")


# --- prompts and runs on disk


@case("no-prompt", "directory")
def unknown_prompt(b):
    return b.generate("--prompt", b.root / "no-prompt")


@case("foreword.json", "adapter_config.json")
def folder_without_a_prompt(b):
    (b.root / "hollow").mkdir()
    return b.generate("--prompt", b.root / "hollow")


@case("adapter_model.safetensors", "damaged")
def truncated_prompt(b):
    path = b.prompt() / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    return b.generate("--prompt", path.parent)


@case("NaN", "train or fetch")
def prompt_with_nan(b):
    return b.generate("--prompt", b.weights(lambda t: next(iter(t.values())).view(-1)[:1].fill_(float("nan"))))


@case("digest")
def prompt_whose_digest_differs(b):
    return b.generate("--prompt", b.weights(lambda t: next(iter(t.values())).view(-1)[:1].add_(1.0)))


@case("tensor", "must be")
def prompt_of_another_shape(b):
    return b.generate("--prompt", b.weights(lambda t: t.update({n: v[:1].clone() for n, v in t.items()})))


@case("lenght", "length")
def manifest_with_an_unknown_field(b):
    return b.generate("--prompt", b.manifest(lambda m: m["spec"].update(lenght=3)))


@case("version", "99", "upgrade")
def manifest_of_a_newer_version(b):
    return b.generate("--prompt", b.manifest(lambda m: m.update(version=99)))


@case("foreword.json", "JSON")
def manifest_that_is_cut_off(b):
    path = b.prompt() / "foreword.json"
    path.write_text(path.read_text()[:100])
    return b.generate("--prompt", path.parent)


@case("prompt ''", "foreword.json")
def empty_name_of_a_prompt(b):
    return b.generate("--prompt", "")


@case("source too", "another directory")
def converting_onto_itself(b):
    prompt = b.prompt()
    return ["convert", prompt, prompt, "--to", "peft"]


@case("state.json", "damaged")
def resuming_from_half_a_checkpoint(b):
    run = b.run()
    (sorted(run.glob("checkpoints/step-*"))[-1] / "state.json").write_text("{}")
    return ["train", "--resume", run]


@case("--out", "--resume")
def resuming_into_another_directory(b):
    return ["train", "--resume", b.run(), "--out", b.root / "out"]


@case("config.yaml", "resume")
def resuming_where_no_run_is(b):
    return ["train", "--resume", b.root]


@case("step-", "damaged")
def resuming_from_a_damaged_checkpoint(b):
    run = b.run()
    path = sorted(run.glob("checkpoints/step-*"))[-1] / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    return ["train", "--resume", run]


@case("steps was 4 and is now 9", "run_dir")
def resuming_with_a_changed_config(b):
    return ["train", b.recipe, "steps=9", "--resume", b.run()]


@case("training data", "restore it")
def resuming_with_changed_data(b):
    run = b.run()
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(b.place.task), str(b.task(GOOD_ROW * 3))))
    return ["train", "--resume", run]


@case("notes.txt", "new directory")
def converting_onto_a_folder_of_other_things(b):
    (b.root / "mine").mkdir()
    (b.root / "mine" / "notes.txt").write_text("keep me")
    return ["convert", b.artifact, b.root / "mine"]


@case("in.jsonl", "'text'")
def input_row_without_text(b):
    return ["generate", "--backbone", b.backbone, "--input", b.file("in.jsonl", '{"txt": "ab"}\n')]


@case("in.jsonl", "'promt'", "'prompt'")
def input_row_with_a_mistyped_prompt(b):
    return ["generate", "--backbone", b.backbone, "--input", b.file("in.jsonl", '{"text": "ab", "promt": "x"}\n')]


@case("num_beams = 0", "at least 1")
def no_beams(b):
    return b.generate("--beams", 0)


@case("batch_size = -1", "at least 1")
def batches_of_less_than_one(b):
    return ["evaluate", b.place.run, "--batch-size", -1]


@case("resamples = -1", "at least 0")
def fewer_resamples_than_none(b):
    return ["evaluate", b.place.run, "--resamples", -1]


@case("in.jsonl", "no rows")
def input_without_rows(b):
    return ["generate", "--backbone", b.backbone, "--input", b.file("in.jsonl", "")]


@case("--task")
def evaluating_a_prompt_without_a_task(b):
    return ["evaluate", b.artifact]


def snapshot(root: Path) -> dict[str, str]:
    """Return the digest of every file below a folder."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_there_are_at_least_30_kinds():
    assert len(CASES) >= 30


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name, place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build, signs = CASES[name]
    words = [str(word) for word in build(Bench(place, tmp_path))]
    before = snapshot(tmp_path), snapshot(place.root)
    capsys.readouterr()

    assert main(words) == 2

    message = capsys.readouterr().err
    lines = [line for line in message.splitlines() if line.startswith("foreword: ")]
    assert len(lines) == 1 and "Traceback" not in message, message
    missing = [sign for sign in signs if sign not in lines[0]]
    assert not missing, lines[0]
    assert (snapshot(tmp_path), snapshot(place.root)) == before
    assert not (tmp_path / "out").exists()
