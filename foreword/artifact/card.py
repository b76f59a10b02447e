"""The model card, `README.md` of every artefact: what it is, what it belongs to, how it was made, how to load it."""

from typing import Any

import yaml

from foreword.artifact.format import BackboneRecord, Manifest

KIND_WORDS = {
    "prefix": "a prefix: learned keys and values that stand before the text in every attention layer",
    "prompt": "a soft prompt: learned input embeddings that stand beside the text",
    "infix": "an infix: learned embeddings and attention offsets between the source and the target",
}


def model_card(manifest: Manifest, why_not_peft: str | None) -> str:
    """Return the Markdown text of a prompt's card.

    Args:
        manifest: of the artefact.
        why_not_peft: why PEFT cannot load it, None where it can.
    """
    spec = manifest.spec
    sections = [
        _front_matter(manifest, why_not_peft),
        f"# {spec.kind.capitalize()} of {spec.length} virtual tokens\n\nThis is {KIND_WORDS[spec.kind]}. The language "
        "model itself is unchanged; the prompt only works in front of the model it was learned on.",
        _backbone(manifest.backbone),
        _scores(manifest.scores or {}),
        _loading(why_not_peft),
        _recipe(manifest),
        f"Content digest: `{manifest.digest}`",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(manifest: Manifest, why_not_peft: str | None) -> str:
    tags = ["foreword", "soft-prompt", manifest.spec.kind, *(["peft"] if why_not_peft is None else [])]
    head: dict[str, Any] = {"library_name": "foreword", "tags": tags}
    return "---\n" + yaml.safe_dump(head, sort_keys=False) + "---"


def _backbone(backbone: BackboneRecord) -> str:
    lines = ["## Backbone", "", f"Source: `{backbone.source or 'unknown'}`", ""]
    if backbone.fingerprint is None:
        return "\n".join([*lines, "No fingerprint was recorded, so a wrong backbone of the same size is not noticed."])
    rows = [f"| {part} | `{digest}` |" for part, digest in backbone.fingerprint.items()]
    return "\n".join([*lines, "| part | sha256 |", "|---|---|", *rows])


def _scores(scores: dict[str, Any]) -> str:
    rows = [f"| {name} | {_score(value)} |" for name, value in scores.items()]
    return "\n".join(["## Scores", "", "| measure | value |", "|---|---|", *rows]) if rows else ""


def _score(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|").replace("\n", " ")


def _loading(why_not_peft: str | None) -> str:
    lines = [
        "## Use",
        "",
        "```python",
        "import foreword as fw",
        "",
        'backbone = fw.load_backbone("PATH OR HUB ID OF THE BACKBONE")',
        'prompt = fw.load_prompt("THIS DIRECTORY OR REPOSITORY")',
        'fw.generate(backbone, ["..."], prompts=[prompt], max_new_tokens=32)',
        "```",
        "",
    ]
    if why_not_peft is None:
        return "\n".join([*lines, "Hugging Face PEFT loads the same directory with `PeftModel.from_pretrained`."])
    return "\n".join([*lines, f"Hugging Face PEFT cannot load it: {why_not_peft}."])


def _recipe(manifest: Manifest) -> str:
    lines = ["## How it was made", ""]
    if manifest.text_format:
        lines += [f"Text format: `{manifest.text_format}`", ""]
    if manifest.data_digest:
        lines += [f"Data digest: `{manifest.data_digest}`", ""]
    if not manifest.recipe:
        return "\n".join([*lines, "No recipe was recorded."])
    return "\n".join([*lines, "```yaml", yaml.safe_dump(manifest.recipe, sort_keys=False).rstrip(), "```"])
