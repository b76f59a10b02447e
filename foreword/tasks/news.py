"""News summaries: XSUM with Prefix-Tuning's two extrapolation splits, and CNN/DailyMail (RECIPES 1.3, 1.8).

Topics of XSUM come from the article's address. A BBC address ends in the article's number, which is also the record's
id, and names the topic before it: `…/news/world-europe-123`, `…/news/business-123`, `…/sport/football/123`,
`…/sport/0/rugby-union/123`. The first part is the domain (news, sport), the first word after it the topic. The papers'
own lists of articles are not published; these rules are ours.
"""

import re
from collections.abc import Callable, Iterable

from foreword.data.files import Row, data_file, filled, pick, read_rows, read_text
from foreword.data.records import Record
from foreword.errors import DataError
from foreword.tasks.source import hub_rows, local_file
from foreword.tasks.task import GenerationLimits, Task

WITHIN_NEWS = ("world", "uk", "business")
HUB_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
# Lewis et al. 2020 (BART): beam 4, 55 to 140 tokens, length penalty 2.
CNN_LIMITS = GenerationLimits(max_new_tokens=140, min_new_tokens=55, num_beams=4, length_penalty=2.0, bad_words=())
# Beam 6, 11 to 62 tokens, length penalty 0.8: the paper's; its code has 1.0 (RECIPES 1.5).
XSUM_LIMITS = GenerationLimits(max_new_tokens=62, min_new_tokens=11, num_beams=6, length_penalty=0.8)


def topic_of(address: str) -> tuple[str, str]:
    """Return an article's domain and topic, as in ("news", "world") and ("sport", "football").

    Raises:
        DataError: no BBC address of that form.
    """
    match = re.search(r"bbc\.(?:co\.uk|com)/(?P<domain>\w+)/(?:0/)?(?P<rest>[\w/-]*?)[-/]?\d+/?$", address.strip())
    if not match:
        raise DataError(f"address {address!r} names no topic; expected …bbc.co.uk/news/world-europe-123")
    topic = re.split(r"[-/]", match["rest"])[0]
    return match["domain"], topic or match["domain"]


def topics(lines: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return each article's domain and topic by its id, from a list of addresses; other lines are left out."""
    found = {}
    for line in lines:
        number = re.search(r"(\d+)/?\s*$", line)
        try:
            found[number[1] if number else ""] = topic_of(line)
        except DataError:
            continue
    return found


def load_xsum(split: str) -> list[Record]:
    """Return XSUM from `xsum/{train,dev,test}.jsonl` (document, summary, id), else from the hub."""
    relative, how = f"xsum/{split}.jsonl", "https://github.com/EdinburghNLP/XSum"
    path = local_file(relative)
    rows = read_rows(path) if path else hub_rows(relative, how, "EdinburghNLP/xsum", HUB_SPLITS[split])
    return _summaries(rows, str(path or "xsum"), "document", "summary")


def _summaries(rows: Iterable[Row], file: str, text: str, summary: str) -> list[Record]:
    records = []
    for number, row in rows:
        where = f"{file!r} row {number}"
        target = filled(pick(row, summary, where), where, summary).strip()
        records.append(Record(filled(pick(row, text, where), where, text), (target,), str(pick(row, "id", where))))
    return records


def load_topics() -> dict[str, tuple[str, str]]:
    """Return the topics of `xsum/urls.txt`, the list of addresses that XSUM's authors publish."""
    path = data_file("xsum/urls.txt", "https://github.com/EdinburghNLP/XSum (XSum-WebArxiveUrls.txt)")
    return topics(read_text(path).splitlines())


def news_to_sports(domain: str, topic: str, test: bool) -> bool:
    """Return whether an article belongs: news to train on, sport to test on."""
    return domain == ("sport" if test else "news")


def within_news(domain: str, topic: str, test: bool) -> bool:
    """Return whether an article belongs: world, UK and business news to train on, other news to test on."""
    return domain == "news" and (topic in WITHIN_NEWS) != test


def extrapolation_loader(belongs: Callable[[str, str, bool], bool]) -> Callable[[str], list[Record]]:
    """Return the loader of an extrapolation split; an article without a known topic is left out."""

    def load(split: str) -> list[Record]:
        known = load_topics()
        kept = []
        for record in load_xsum(split):
            if record.id in known and belongs(*known[record.id], split == "test"):
                domain, topic = known[record.id]
                kept.append(Record(record.source, record.targets, record.id, {"domain": domain, "topic": topic}))
        return kept

    return load


def load_cnn_dm(split: str) -> list[Record]:
    """Return CNN/DailyMail 3.0.0 from `cnn_dm/{train,dev,test}.jsonl` (article, highlights, id), else from the hub."""
    relative, how = f"cnn_dm/{split}.jsonl", "https://github.com/abisee/cnn-dailymail"
    path = local_file(relative)
    rows = read_rows(path) if path else hub_rows(relative, how, "abisee/cnn_dailymail", HUB_SPLITS[split], "3.0.0")
    return _summaries(rows, str(path or "cnn_dm"), "article", "highlights")


def xsum(name: str = "xsum", load: Callable[[str], list[Record]] = load_xsum) -> Task:
    """Return XSUM: an article to one sentence (Narayan et al. 2018), cut to 512 and 60 tokens as in the paper."""
    return Task(
        name=name,
        loader=load,
        metrics=("rouge",),
        generation=XSUM_LIMITS,
        template="the article -> one sentence",
        licence="articles BBC, list of addresses MIT (XSum)",
        max_source=512,
        max_target=60,
    )


def cnn_dm() -> Task:
    """Return CNN/DailyMail: an article to its highlights, a line each (See et al. 2017; ROUGE-Lsum reads the lines)."""
    return Task(
        name="cnn_dm",
        loader=load_cnn_dm,
        metrics=("rouge", "rouge_lsum"),
        generation=CNN_LIMITS,
        template="the article -> its highlights, a line each",
        licence="articles CNN and Daily Mail, scripts MIT",
        max_source=512,
        max_target=140,
    )
