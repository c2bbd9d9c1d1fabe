"""Hold a file's tokenizer to its original's: tokens, merges, special ids, a torture text, the chat template.

Only what both can do is compared: another kind of tokenizer (SentencePiece beside a byte-level one) is a fact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from core.audit.conversion.original import Original
from core.audit.finding import Finding, Strength
from core.formats.model_file import ModelFile
from core.system.errors import AprError
from core.system.json_text import to_json
from core.system.mapped_file import quote_name
from core.text.library import no_panic
from core.text.tokenizer import open_tokenizer
from core.text.vocabulary import CONTROL, UNKNOWN, USER_DEFINED

RULE = "the tokenizer is the original's: tokens, merges, special ids, and the ids of a text"
TEMPLATE_RULE = "the chat template is the original's, letter for letter"
TORTURE = (
    "Hello world", " leading and  double   spaces\t\ttabs\n\nlines\r\n", "I'm you've THEY'LL it's'nt",
    "1234567890 3.14159 1,000,000 0x1F", "def f(x):\n    return x**2 + {'a': [1, 2]}  # \u00e9",
    "Stra\u00dfe na\u00efve \u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac",
    "\u0440\u0443\u0441\u0441\u043a\u0438\u0439",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \ud55c\uad6d\uc5b4 \u4e2d\u6587\uff0c\u3002",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \u200b\ufeff", "!!!???...---===<<<>>> <|x|> </s> [INST]",
    "a" * 40,
)
SPECIALS = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
MAX_TOKENS = 1 << 21
BYTE_SPACE, SPM_SPACE = "\u0120", "\u2581"


def tokenizer_findings(file: ModelFile, original: Original, facts: dict[str, object]) -> Iterator[Finding]:
    """Everything of the tokenizer and the template that differs; facts gets what could not be compared, and why."""
    if original.model is not None:
        facts["tokenizer"] = "compared key by key"
        return
    document = original.documents.get("tokenizer.json")
    tokens = file.key("tokenizer.ggml.tokens")
    wanted = _vocabulary(document)
    if wanted and isinstance(tokens, list) and _kind(wanted.values()) == _kind(tokens):
        yield from _tokens(wanted, tokens)
        yield from _types(document, file, tokens)
        if _is_whole(document):
            yield from _merges(document, file)
            yield from _torture(document, file, facts)
        else:
            facts["tokenizer"] = "tokens compared; the original's tokenizer.json has no merges: no text is encoded"
    else:
        why = ("the original has no tokenizer.json" if not wanted else "the file has no tokens"
               if not isinstance(tokens, list) else "one is byte-level, the other not")
        facts["tokenizer"] = f"not compared: {why}"
    yield from _special_ids(file, original, wanted)
    yield from _template(file, original)


def _is_whole(document: Any) -> bool:  # noqa: ANN401 (parsed JSON)
    """Whether a tokenizer.json can encode: a BPE needs merges."""
    return document["model"].get("type", "BPE") != "BPE" or bool(document["model"].get("merges"))


def _vocabulary(document: object) -> dict[int, str]:
    """Id -> token of a tokenizer.json, added tokens over the model's; empty where it has another form."""
    model = document.get("model") if isinstance(document, dict) else None
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, list):  # Unigram: [token, score]
        vocab = {pair[0]: i for i, pair in enumerate(vocab) if isinstance(pair, list) and pair}
    if not isinstance(vocab, dict):
        return {}
    found = {i: str(token) for token, i in vocab.items() if type(i) is int and 0 <= i < MAX_TOKENS}
    found.update({entry["id"]: entry["content"] for entry in _added(document)})
    return found


def _added(document: Any) -> list[dict[str, Any]]:  # noqa: ANN401 (parsed JSON)
    entries = document.get("added_tokens") if isinstance(document, dict) else None
    entries = entries if isinstance(entries, list) else []
    return [e for e in entries if isinstance(e, dict) and type(e.get("id")) is int and 0 <= e["id"] < MAX_TOKENS
            and isinstance(e.get("content"), str)]


def _kind(tokens: Any) -> str:  # noqa: ANN401 (any iterable of tokens)
    """spm where words begin with SentencePiece's space, bytes where with the byte-level one."""
    some = [str(token) for token in tokens]
    spaces = [sum(token.startswith(space) for token in some) for space in (SPM_SPACE, BYTE_SPACE)]
    return "spm" if spaces[0] > spaces[1] else "bytes" if spaces[1] else "plain"


def _tokens(wanted: Mapping[int, str], tokens: list[Any]) -> Iterator[Finding]:
    if wanted and max(wanted) >= len(tokens):
        lost = sorted(i for i in wanted if i >= len(tokens))
        yield _finding("tokens", f"the file has {len(tokens)} tokens; the original's id {lost[0]} is "
                       f"{quote_name(wanted[lost[0]])}, and {len(lost)} ids are lacking", len(lost))
    unlike = [i for i, token in sorted(wanted.items()) if i < len(tokens) and tokens[i] != token]
    if unlike:
        i = unlike[0]
        yield _finding("tokens", f"token {i} is {quote_name(str(tokens[i]))}, in the original {quote_name(wanted[i])}; "
                       f"{len(unlike)} tokens differ", len(unlike))


def _types(document: object, file: ModelFile, tokens: list[Any]) -> Iterator[Finding]:
    types = file.key("tokenizer.ggml.token_type")
    if not isinstance(types, list):
        return
    cut = [e for e in _added(document) if e.get("special") is True and e["id"] < min(len(types), len(tokens))
           and tokens[e["id"]] == e["content"] and types[e["id"]] not in (UNKNOWN, CONTROL, USER_DEFINED)]
    if cut:
        id, text = cut[0]["id"], quote_name(cut[0]["content"])
        yield _finding("token type", f"token {id} ({text}) is special in the original and of type {types[id]} in the "
                       f"file: it is cut up; {len(cut)} such tokens", len(cut))


def _merges(document: Any, file: ModelFile) -> Iterator[Finding]:  # noqa: ANN401 (parsed JSON)
    wanted, found = document["model"].get("merges"), file.key("tokenizer.ggml.merges")
    if not isinstance(wanted, list) or not isinstance(found, list):
        return
    texts = [" ".join(map(str, m)) if isinstance(m, list) else str(m) for m in wanted]
    if texts == found:
        return
    at = _first_unlike(texts, found)
    yield _finding("merges", f"the file has {len(found)} merges and the original {len(texts)}; merge {at} is the first "
                   "that differs", at)


def _torture(document: object, file: ModelFile, facts: dict[str, object]) -> Iterator[Finding]:
    """Both tokenizers on the same pieces of text, without BOS and EOS."""
    tokenizer = open_tokenizer(file)
    if tokenizer.refusal is not None:
        facts["tokenizer"] = f"not run: {tokenizer.refusal}"
        return
    from tokenizers import Tokenizer

    try:
        with no_panic():
            engine = Tokenizer.from_str(to_json(document))
            wanted = [engine.encode(text, add_special_tokens=False).ids for text in TORTURE]
    except ValueError:
        facts["tokenizer"] = "not run: the tokenizers library does not read the original's tokenizer.json"
        return
    try:
        found = [_bare(tokenizer.encode(text), file) for text in TORTURE]
    except AprError as error:
        yield _finding("tokenizer", f"the file's tokenizer fails on the torture text: {error}")
        return
    facts["tokenizer"] = f"{sum(map(len, wanted))} tokens of a torture text compared"
    unlike = [i for i, (a, b) in enumerate(zip(wanted, found, strict=True)) if a != b]
    if unlike:
        i = unlike[0]
        yield _finding("tokenizer", f"{TORTURE[i]!a} is {_few(found[i])} by the file and {_few(wanted[i])} by the "
                       f"original; {len(unlike)} of {len(TORTURE)} texts differ", len(unlike))


def _bare(ids: list[int], file: ModelFile) -> list[int]:
    """Ids without the BOS and EOS that the file adds."""
    bos, eos = (file.key(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    ids = ids[1:] if ids and ids[0] == bos and file.key("tokenizer.ggml.add_bos_token") is not False else ids
    return ids[:-1] if ids and ids[-1] == eos and file.key("tokenizer.ggml.add_eos_token") is True else ids


def _few(ids: list[int]) -> str:
    return str(ids[:12])[:-1] + (", ...]" if len(ids) > 12 else "]")


def _special_ids(file: ModelFile, original: Original, wanted: Mapping[int, str]) -> Iterator[Finding]:
    by_text = {token: i for i, token in wanted.items()}
    settings = original.documents.get("tokenizer_config.json")
    settings = settings if isinstance(settings, dict) else {}
    generation = original.documents.get("generation_config.json")
    generation = generation if isinstance(generation, dict) else {}
    for name, word in SPECIALS.items():
        token = settings.get(word)
        token = token.get("content") if isinstance(token, dict) else token
        named = by_text.get(token) if isinstance(token, str) else None
        ids = {i for c in (original.config, generation) for i in _ids(c.get(f"{word}_id"))}
        ids |= {named} if named is not None else set()
        found = file.key(f"tokenizer.ggml.{name}_token_id")
        if found is None and named is not None and name in ("bos", "eos"):
            yield _finding("special id", f"tokenizer.ggml.{name}_token_id is absent; the original's {word} is {named}")
        elif found is not None and ids and found not in ids:
            text = " or ".join(map(str, sorted(ids)))
            yield _finding("special id", f"tokenizer.ggml.{name}_token_id is {found}; the original's {word} is {text}")
    document = original.documents.get("tokenizer.json")
    is_template = isinstance(document, dict) and document.get("post_processor") is not None
    for name in ("add_bos_token", "add_eos_token"):
        said, found = settings.get(name), file.key(f"tokenizer.ggml.{name}")
        if isinstance(said, bool) and isinstance(found, bool) and said != found and not is_template:
            text = f"tokenizer.ggml.{name} is {found}; the original's tokenizer_config says {said}"
            yield _finding("special id", text)


def _ids(said: object) -> list[int]:
    many = said if isinstance(said, list) else [said]
    return [i for i in many if type(i) is int]


def _template(file: ModelFile, original: Original) -> Iterator[Finding]:
    settings = original.documents.get("tokenizer_config.json")
    said = settings.get("chat_template") if isinstance(settings, dict) else None
    if isinstance(said, list):
        named = {e.get("name"): e.get("template") for e in said if isinstance(e, dict)}
        said = named.get("default")
    wanted = original.template if original.template is not None else said
    found = file.key("tokenizer.chat_template")
    if not isinstance(wanted, str) or found == wanted:
        return
    if not isinstance(found, str):
        text = f"the file has no chat template; the original's has {len(wanted)} letters"
    else:
        at = _first_unlike(found, wanted)
        text = (f"the chat template is not the original's: from letter {at} on {found[at:at + 24]!a} stands where "
                f"the original has {wanted[at:at + 24]!a}")
    yield Finding("chat template", Strength.PROOF, text, TEMPLATE_RULE)


def _first_unlike(one: Sequence[object], other: Sequence[object]) -> int:
    """The first place at which two sequences differ; the shorter one's length where one begins the other."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _finding(kind: str, text: str, measured: float | None = None) -> Finding:
    return Finding(kind, Strength.PROOF, text, RULE, None if measured is None else float(measured))
