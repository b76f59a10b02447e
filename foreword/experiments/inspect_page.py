"""The page of an inspection: what each virtual token does, what looks at it, what words it is near, how large it is."""

from collections.abc import Sequence

from foreword.experiments import report as page
from foreword.inspect.attention import AttentionMap
from foreword.inspect.importance import Norms
from foreword.inspect.job import Inspection
from foreword.inspect.nearest import Nearest, Persistence
from foreword.prompts.bank import Site

NAMES_SHOWN = 3


def inspect_page(found: Inspection) -> page.Report:
    """Return an inspection as a report."""
    sections = [
        page.Section("At a glance", [_highlights(found)]),
        page.Section("What each virtual token does", _importance(found)),
        page.Section("Attention paid to it", _attention(found)),
        page.Section("Nearest words", _nearest(found.nearest, found.missing)),
    ]
    if found.persistence:
        sections.append(page.Section("What is left of the first words", [_persistence(found.persistence)]))
    sections += [page.Section("Size", _norms(found.norms)), page.Section("How this was made", [_facts(found)])]
    return page.Report(
        title=f"Inside {found.name}",
        summary=(
            f"A {found.prompt.spec.kind} of {found.prompt.length} virtual tokens on `{found.backbone.source}`, looked "
            f"at on {found.texts}."
        ),
        sections=sections,
    )


def attention_by_token(attention: AttentionMap, stack: str) -> page.HeatMap:
    """Return one stack's attention to each virtual token, a row a layer, averaged over heads."""
    table = attention.by_layer(stack)
    layers = [str(layer) for name, layer in attention.weights if name == stack]
    return page.HeatMap(
        table.tolist(), layers, _positions(table.shape[1]), "virtual token", "layer", "share of attention",
        caption=f"{stack}: mean over heads, texts and the positions that look.",
    )


def attention_by_head(attention: AttentionMap, stack: str) -> page.HeatMap:
    """Return one stack's attention to the whole prompt, a row a layer, a column a head."""
    sites = [site for site in attention.weights if site[0] == stack]
    table = [attention.weights[site].sum(1).tolist() for site in sites]
    return page.HeatMap(
        table, [str(layer) for _, layer in sites], _positions(len(table[0])), "head", "layer", "share of attention",
        caption=f"{stack}: to all virtual tokens together; the rest goes to the text.", top=1.0,
    )


def attention_in_full(attention: AttentionMap, stack: str) -> page.HeatMap:
    """Return one stack's attention to each virtual token, a row a head of a layer."""
    sites = [site for site in attention.weights if site[0] == stack]
    heads = [(f"{layer}.{head}", row) for _, layer in sites for head, row in _rows(attention, (stack, layer))]
    return page.HeatMap(
        [row for _, row in heads], [name for name, _ in heads], _positions(len(heads[0][1])), "virtual token",
        "layer.head", "share of attention", caption=f"{stack}: every head by itself.",
    )


def _rows(attention: AttentionMap, site: Site) -> list[tuple[int, list[float]]]:
    return list(enumerate(attention.weights[site].tolist()))


def _positions(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def _highlights(found: Inspection) -> page.Highlights:
    items = []
    if found.importance is not None:
        gain = f"{found.importance.bare:.2f} → {found.importance.whole:.2f}"
        items.append((gain, "loss in nats a token, without and with the prompt"))
        rises = found.importance.rises
        most = max(range(len(rises)), key=rises.__getitem__)
        items.append((f"{rises[most]:+.3f}", f"loss without virtual token {most}, which does most"))
    if found.attention is not None and found.attention.weights:
        shares = [float(weights.sum(1).mean()) for weights in found.attention.weights.values()]
        items.append((f"{sum(shares) / len(shares):.0%}", "of all attention goes to the prompt, mean over layers"))
    if found.nearest is not None:
        near = sum(token.cosine_p < 0.05 for token in found.nearest.tokens)
        items.append((f"{near} of {found.prompt.length}", "virtual tokens nearer to a word than chance (p < 0.05)"))
    return page.Highlights(items)


def _importance(found: Inspection) -> list[page.Block]:
    if found.importance is None:
        return [page.Prose(f"Left out: {found.missing.get('leaving one out', 'not applicable')}.")]
    points = [(float(i), rise) for i, rise in enumerate(found.importance.rises)]
    return [
        page.Plot(
            {"rise": points}, "virtual token", "loss without it, rise in nats",
            caption=(
                f"The loss on {found.importance.tokens:,} target tokens when one virtual token is left out, less the "
                f"loss {found.importance.whole:.4f} with all of them. Below zero the prompt is better without it."
            ),
        )
    ]  # fmt: skip


def _attention(found: Inspection) -> list[page.Block]:
    if found.attention is None or not found.attention.weights:
        return [page.Prose(f"Left out: {found.missing.get('attention', 'no attention sees the prompt')}.")]
    blocks: list[page.Block] = []
    for stack in found.attention.stacks:
        draw = (attention_by_token, attention_by_head, attention_in_full)
        blocks += [one(found.attention, stack) for one in draw]
    return blocks


def _nearest(nearest: Nearest | None, missing: dict[str, str]) -> list[page.Block]:
    if nearest is None:
        return [page.Prose(f"Left out: {missing.get('nearest tokens', 'not applicable')}.")]
    rows = [
        (token.position, _named(token.cosine, 2), token.cosine_p, _named(token.euclid, 1), token.euclid_p)
        for token in nearest.tokens
    ]
    low, high = nearest.control
    return [
        page.Table(
            ("token", "by cosine", "p", "by distance", "p of distance"), rows, digits=3,
            caption=(
                f"Nearest vocabulary tokens by {nearest.of}. p is the share of {nearest.draws} random vectors, drawn "
                f"with the vocabulary's mean and spread, that have a neighbour at least as near. A random vector's "
                f"nearest token has cosine {low:.2f} (median) and {high:.2f} (one of twenty): a word as far away as "
                "that means nothing."
            ),
        )
    ]  # fmt: skip


def _named(tokens: Sequence[tuple[str, float]], digits: int) -> str:
    return ", ".join(f"{name!r} {value:.{digits}f}" for name, value in tokens[:NAMES_SHOWN])


def _persistence(found: Sequence[Persistence]) -> page.Table:
    return page.Table(
        ("token", "first word", "cosine now", "rank", "nearest virtual token", "rank there"),
        [(one.position, one.word, one.cosine, one.rank, one.best_position, one.best_rank) for one in found],
        caption=(
            "How near each virtual token still is to the word it started from: rank 1 means that no vocabulary token "
            "is nearer. The last columns tell where the word is nearest now."
        ),
    )


def _norms(norms: Norms) -> list[page.Block]:
    blocks: list[page.Block] = []
    if norms.embedding:
        points = [(float(i), value) for i, value in enumerate(norms.embedding)]
        blocks.append(
            page.Plot({"norm": points}, "virtual token", "norm, 1 is a real token's", "Norms of the input embeddings.")
        )
    for what, by_site in (("keys", norms.keys), ("values", norms.values)):
        for stack in dict.fromkeys(stack for stack, _ in by_site):
            rows = [(str(layer), values) for (name, layer), values in by_site.items() if name == stack]
            blocks.append(
                page.HeatMap(
                    [values for _, values in rows], [layer for layer, _ in rows], _positions(len(rows[0][1])),
                    "virtual token", "layer", "times a real token's", f"Norms of {what}, {stack}.",
                )
            )
    return blocks or [page.Prose("The prompt puts nothing into attention.")]


def _facts(found: Inspection) -> page.Facts:
    spec = found.prompt.spec
    return page.Facts(
        {
            "command": f"foreword inspect {found.name}",
            "prompt": f"{spec.kind} of {spec.length}, reparametrisation {spec.reparam}",
            "numbers stored": found.prompt.num_stored,
            "backbone": found.backbone.source,
            "texts": found.texts,
        }
    )


__all__ = ["attention_by_head", "attention_by_token", "attention_in_full", "inspect_page"]
