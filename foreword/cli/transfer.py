"""`foreword transfer`: compare prompts, mix them, try them on other tasks, and carry them to another model."""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from foreword.cli.command import Parser, add_command, refuse_beside
from foreword.errors import ConfigError

if TYPE_CHECKING:
    from foreword.prompts.soft_prompt import SoftPrompt


def add_transfer(commands: Any) -> None:
    """Add `foreword transfer` with its actions."""
    text = "Compare prompts, mix them, try them on other tasks, carry them to another model."
    parser = commands.add_parser("transfer", help=text, description=text, allow_abbrev=False)
    actions = parser.add_subparsers(dest="command", metavar="ACTION", required=True, parser_class=Parser)
    for add in (_add_rank, _add_mix, _add_matrix, _add_recycle, _add_project):
        add(actions)


def _add_rank(actions: Any) -> None:
    add = add_command(actions, "rank", _rank, "List a library's prompts, the most similar to a prompt first.")
    add("query", metavar="PROMPT_DIR")
    _library_options(add)


def _add_mix(actions: Any) -> None:
    add = add_command(actions, "mix", _mix, "Save a weighted sum of prompts, for a new prompt to start from.")
    add("prompts", nargs="*", metavar="PROMPT_DIR")
    add("--weight", action="append", type=float, default=[], help="one a prompt; left out: all alike")
    add("--query", metavar="PROMPT_DIR", help="weight the most similar of --library by their similarity to this prompt")
    _library_options(add, required=False)
    add("--top", type=int, default=3, help="how many of the library to mix")
    add("--out", metavar="DIR", required=True)


def _add_matrix(actions: Any) -> None:
    add = add_command(actions, "matrix", _matrix, "Loss and score of every prompt of a library on every one's task.")
    add("library", metavar="LIBRARY_DIR")
    add("--backbone", required=True, help="directory, bundled name or hub id")
    add("--split", default="dev")
    add("--limit", type=int, default=200, help="records of each task, drawn by --seed")
    add("--generate", type=int, default=0, help="records to generate for and score; 0 for the loss alone")
    add("--seed", type=int, default=0)
    add("--out", metavar="FILE.json", help="write the matrix there")


def _add_recycle(actions: Any) -> None:
    add = add_command(actions, "recycle", _recycle, "Make a prompt of one model a prompt of another, without training.")
    add("prompt", metavar="PROMPT_DIR")
    add("--target", required=True, help="the model to carry it to")
    add("--source", help="the model it was learned on; default: the one it names")
    add("--text", metavar="FILE", help="plain text, a passage a line, to align a prefix by; default: the bundled one")
    add("--top-tokens", type=int, help="align a prompt by this many shared tokens only")
    add("--out", metavar="DIR", required=True)


def _add_project(actions: Any) -> None:
    add = add_command(actions, "project", _project, "Train a projector between two models and project a prompt by it.")
    add("prompt", metavar="PROMPT_DIR")
    add("--source", required=True, help="the model that prompts come from")
    add("--target", required=True, help="the model to carry it to")
    add("--from", dest="sources", action="append", default=[], metavar="PROMPT_DIR",
        help="a source prompt to train on; several may be given")
    add("--to", dest="targets", action="append", default=[], metavar="PROMPT_DIR",
        help="the target's prompt of the same task, for the distance; one for each --from, in their order")
    add("--task", dest="tasks", action="append", default=[], help="task of each --from, to train through its loss")
    add("--kind", choices=("token", "flat", "layers"), help="default: token for a prompt, layers for a prefix")
    add("--activation", choices=("none", "leaky_relu", "tanh"), help="default: leaky_relu for flat, none for others")
    add("--steps", type=int, default=500)
    add("--lr", type=float, default=5e-3)
    add("--limit", type=int, default=2000, help="training records of each task")
    add("--seed", type=int, default=0)
    add("--out", metavar="DIR", required=True)


def _library_options(add: Any, required: bool = True) -> None:
    add("--library", metavar="DIR", required=required, help="a folder of saved prompts or of runs")
    add("--measure", default="C_avg", help="E_concat, E_avg, C_concat, C_avg, C_mean or ON")
    add("--backbone", help="directory, bundled name or hub id; needed for ON")


def _rank(arguments: argparse.Namespace) -> int:
    for name, value in _ranking(arguments):
        print(f"{value:9.6f}  {name}")
    return 0


def _ranking(arguments: argparse.Namespace) -> list[tuple[str, float]]:
    from foreword.artifact import load_prompt
    from foreword.backbone import load_backbone
    from foreword.compose.library import load_library, rank_library

    backbone = load_backbone(arguments.backbone) if arguments.backbone else None
    query = load_prompt(arguments.query, backbone)
    return rank_library(query, load_library(arguments.library, backbone), arguments.measure, backbone)


def _mix(arguments: argparse.Namespace) -> int:
    from foreword.artifact import load_prompt, save_prompt
    from foreword.compose.library import load_library, mix_prompts, spot_weights

    if bool(arguments.prompts) == bool(arguments.query):
        raise ConfigError("give either prompts to mix, or --query and --library")
    if arguments.query:
        if not arguments.library:
            raise ConfigError("--query needs --library, a folder of prompts to choose from")
        refuse_beside("--query", {"--weight": arguments.weight})
        named = spot_weights(_ranking(arguments), arguments.top)
        library = load_library(arguments.library)
        prompts = {name: library[name] for name in named}
    else:
        refuse_beside("prompts to mix", {"--library": arguments.library})
        count = len(arguments.prompts)
        weights = arguments.weight or [1 / count] * count
        if len(weights) != count:
            raise ConfigError(f"{count} prompts and {len(weights)} weights; give one --weight for each prompt")
        if len(set(arguments.prompts)) != count:
            raise ConfigError("a prompt is given twice; give it once with a larger --weight")
        named = dict(zip(arguments.prompts, weights, strict=True))
        prompts = {name: load_prompt(name) for name in named}
    mixed = mix_prompts(list(prompts.values()), list(named.values()))
    print("\n".join(f"{weight:9.6f}  {name}" for name, weight in named.items()))
    print(f"written to {save_prompt(mixed, arguments.out, recipe={'mixture': named})}")
    return 0


def _matrix(arguments: argparse.Namespace) -> int:
    from foreword.backbone import load_backbone
    from foreword.compose.library import load_library
    from foreword.compose.transfer import zero_shot_matrix
    from foreword.data.files import write_atomic
    from foreword.tasks import get_task

    backbone = load_backbone(arguments.backbone)
    prompts = load_library(arguments.library, backbone)
    tasks = {name: get_task(_task_of(name, prompt)) for name, prompt in prompts.items()}
    matrix = zero_shot_matrix(
        backbone, prompts, tasks, split=arguments.split, limit=arguments.limit, generated=arguments.generate,
        seed=arguments.seed,
    )
    width = max(map(len, matrix.sources))
    print(" " * width, *(f"{target[:14]:>14}" for target in matrix.targets))
    for source in matrix.sources:
        cells = [matrix.cells[source][target] for target in matrix.targets]
        texts = [f"{c.loss:.3f}" + ("" if c.score is None else f" ({c.score:.3f})") for c in cells]
        print(f"{source:<{width}}", *(f"{text:>14}" for text in texts))
    print(f"loss in nats per target token{', in brackets the score of generated texts' if arguments.generate else ''}")
    if arguments.out:
        write_atomic(arguments.out, json.dumps(matrix.to_dict(), indent=2) + "\n")
    return 0


def _task_of(name: str, prompt: "SoftPrompt") -> str:
    """Return the task that a saved prompt was trained on, or the one that its directory is named after."""
    from foreword.tasks import TASKS

    task = (prompt.meta.get("recipe") or {}).get("task") or name
    if task not in TASKS and not str(task).endswith((".yaml", ".yml")):
        raise ConfigError(f"prompt {name!r} does not say which task it is for; name its directory after the task")
    return str(task)


def _recycle(arguments: argparse.Namespace) -> int:
    from foreword.artifact import load_prompt, save_prompt
    from foreword.backbone import load_backbone
    from foreword.compose.recycle import recycle

    prompt = load_prompt(arguments.prompt)
    name = arguments.source or prompt.meta.get("source")
    if not name:
        raise ConfigError(f"{arguments.prompt!r} does not say which model it was learned on; give --source")
    source, target = load_backbone(name), load_backbone(arguments.target)
    texts = _passages(arguments.text) if prompt.spec.kind == "prefix" else ()
    found = recycle(prompt, source, target, texts=texts, top_tokens=arguments.top_tokens)
    unit = "aligned text positions" if prompt.spec.kind == "prefix" else "shared tokens"
    print(f"{found.points:,} {unit}; relative error of the map {found.error:.4f}")
    recipe = {"recycled": {"prompt": arguments.prompt, "source": str(name)}}
    print(f"written to {save_prompt(found.prompt, arguments.out, target, recipe=recipe)}")
    return 0


def _passages(path: str | None) -> Sequence[str]:
    from foreword.data.files import read_text
    from foreword.evaluate.subject import unrelated_texts

    return unrelated_texts() if path is None else [line for line in read_text(path).split("\n") if line.strip()]


def _project(arguments: argparse.Namespace) -> int:
    import torch

    from foreword.artifact import load_prompt, save_prompt
    from foreword.backbone import load_backbone
    from foreword.compose.projector import ProjectorSpec, make_projector, project

    if not arguments.sources or not (arguments.targets or arguments.tasks):
        raise ConfigError("give the prompts to train on with --from, and for each a --to (distance) or a --task (loss)")
    for option, given in (("to", arguments.targets), ("task", arguments.tasks)):
        if given and len(given) != len(arguments.sources):
            have = f"{len(arguments.sources)} times --from, {len(given)} times --{option}"
            raise ConfigError(f"{have}; give equally many")
    source, target = load_backbone(arguments.source), load_backbone(arguments.target)
    prompt = load_prompt(arguments.prompt, source)
    kind = arguments.kind or ("layers" if prompt.spec.kind == "prefix" else "token")
    spec = ProjectorSpec(kind, arguments.activation or ("leaky_relu" if kind == "flat" else "none"))
    generator = torch.Generator().manual_seed(arguments.seed)
    projector = make_projector(spec, prompt, source, target, generator)
    losses = _fit(arguments, projector, prompt, source, target, generator)
    print(f"projector {kind}: loss {losses[0]:.4f} at the first step, {losses[-1]:.4f} at the last")
    made = project(projector, prompt, target).fold()
    recipe = {"projected": {"prompt": arguments.prompt, "kind": kind, "from": arguments.sources}}
    print(f"written to {save_prompt(made, arguments.out, target, recipe=recipe)}")
    return 0


def _fit(
    arguments: argparse.Namespace, projector: Any, prompt: "SoftPrompt", source: Any, target: Any, generator: Any
) -> list[float]:
    """Train the projector by whatever was given for each --from, and return the losses."""
    from foreword.artifact import load_prompt
    from foreword.compose.activations import carried_format
    from foreword.compose.projector_training import FitConfig, fit_distance, fit_task
    from foreword.data.examples import get_format, tokenise
    from foreword.tasks import get_task

    config = FitConfig(steps=arguments.steps, lr=arguments.lr)
    known = [load_prompt(place, source) for place in arguments.sources]
    goals = [load_prompt(place, target) for place in arguments.targets]
    pairs = list(zip(known, goals, strict=True)) if goals else []
    if not arguments.tasks:
        return fit_distance(projector, pairs, config)
    form = get_format(carried_format(prompt, target), target.is_encoder_decoder)
    tasks = [get_task(name) for name in arguments.tasks]
    data = {
        f"{number}": tokenise(
            task.load("train", arguments.limit), target.tokenizer, form, task.max_source, task.max_target
        ).examples
        for number, task in enumerate(tasks)
    }
    prompts = dict(zip(data, known, strict=True))
    return fit_task(projector, prompts, target, data, generator, config, pairs=pairs, tail=form.tail)
