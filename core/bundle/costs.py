"""Keep what kl, damage or audit found as a folder: document, table, reports; and read it back. It measures nothing.

Not here: the state of a run of kl that is under way (core.damage.run_kl), which lies in the same folder.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from core.audit.audit_file import Audit
from core.audit.finding import Finding
from core.bundle.audits import audit_document, audit_text
from core.bundle.cost_page import audit_page, damage_page, kl_page
from core.bundle.csv_table import csv_text
from core.bundle.damage_document import damage_document, damage_text, kl_document, kl_text
from core.bundle.manifest import SCHEMA, versions
from core.bundle.page import Page
from core.bundle.page_html import page_html
from core.bundle.page_markdown import page_markdown
from core.damage.result import Damage
from core.damage.run_kl import COLUMNS, STATE, KlResult
from core.system import limits
from core.system.atomic_file import atomic_file
from core.system.atomic_folder import COSTS, MANIFEST, new_folder
from core.system.errors import FileError, OutputError, os_reason
from core.system.json_text import from_json, to_json
from core.system.regular_file import read_file

TEXT = "report.txt"
AGAIN = "Run it again with --out."


def write_damage(
    out: Path, found: Damage, names: tuple[str, str | None], *, force: bool, command: str, repeat: str
) -> None:
    """Write a bill as a folder, whole or not at all. names: of file and original. UsageError, OutputError."""
    table = csv_text({c: [getattr(t, c) for t in found.tensors]
                      for c in ("name", "layer", "type", "bytes", "kl", "share")}, as_text=True)
    document = damage_document(found, *names)
    _write(out, {"damage.json": to_json(document) + "\n", "tensors.csv": table, TEXT: damage_text(found, names[0]),
                 **_pages(damage_page(found, names[0], table, repeat))}, force=force, command=command)


def write_audit(out: Path, found: Audit, *, force: bool, command: str, repeat: str) -> None:
    """Write an audit as a folder, whole or not at all; UsageError, OutputError."""
    columns = [f.name for f in fields(Finding)]
    table = csv_text({c: [getattr(f, c) for f in found.findings] for c in columns}, as_text=True)
    _write(out, {"audit.json": to_json(audit_document(found)) + "\n", "findings.csv": table, TEXT: audit_text(found),
                 **_pages(audit_page(found, table, repeat))}, force=force, command=command)


def _write(out: Path, files: Mapping[str, str], *, force: bool, command: str) -> None:
    with new_folder(out, force=force) as part:
        for name, text in files.items():
            (part / name).write_text(text, encoding="utf-8")
        (part / MANIFEST).write_text(_manifest(command, _sums(files)), encoding="ascii")


def write_kl(out: Path, found: KlResult, *, command: str, repeat: str) -> None:
    """Write the result into the folder that holds the run's state, the manifest last; OutputError."""
    numbers = {name: [None if math.isnan(x) else x for x in getattr(found.tokens, name).tolist()] for name in COLUMNS}
    tokens = csv_text({"position": range(len(found.ids)), "token": found.ids, **numbers}, as_text=True)
    cache = {"cache.csv": csv_text({name: [getattr(c, name) for c in found.cache]
                                    for name in ("layer", "part", "head", "kl")}, as_text=True)} if found.cache else {}
    files = {"kl.json": to_json(kl_document(found)) + "\n", "kl.csv": tokens, **cache, TEXT: kl_text(found),
             **_pages(kl_page(found, repeat))}
    try:
        state = {path.name: read_file(path, limits.CACHE_BYTES, "") for path in sorted(out.iterdir())
                 if path.suffix in STATE}
        (out / MANIFEST).unlink(missing_ok=True)
        for name, text in files.items():
            with atomic_file(out / name) as part:
                part.write_text(text, encoding="utf-8")
        with atomic_file(out / MANIFEST) as part:
            part.write_text(_manifest(command, _sums(files) | {
                name: hashlib.sha256(data).hexdigest() for name, data in state.items()}), encoding="ascii")
    except OSError as error:
        raise OutputError(f"{out} could not be written: {os_reason(error)}. Free some space; the same command goes on "
                          "from what is there.") from error


def _pages(page: Page) -> dict[str, str]:
    return {"report.md": page_markdown(page), "report.html": page_html(page)}


def _sums(files: Mapping[str, str]) -> dict[str, str]:
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}


def _manifest(command: str, sums: Mapping[str, str]) -> str:
    return to_json({"schema": SCHEMA, "command": command, "versions": versions(), "sha256": sums}, indent=1) + "\n"


def read_cost(folder: Path, *, as_json: bool) -> str:
    """The document or the text of such a folder; FileError where it was changed."""
    name = next((d for d in COSTS if (folder / d).is_file()), COSTS[0]) if as_json else TEXT
    told = read_file(folder / MANIFEST, limits.DOCUMENT_BYTES, AGAIN)
    manifest: Any = from_json(told, str(folder / MANIFEST), AGAIN)
    data = read_file(folder / name, limits.DOCUMENT_BYTES, AGAIN)
    sums = manifest.get("sha256") if isinstance(manifest, dict) else None
    if not isinstance(sums, dict) or sums.get(name) != hashlib.sha256(data).hexdigest():
        raise FileError(f"{folder / name} was changed after it was written. {AGAIN}")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FileError(f"{folder / name} is not UTF-8 text: byte {error.start}. {AGAIN}") from error


def open_bill(folder: Path) -> Damage | None:
    """The bill of a folder that write_damage made, without its rows; None of kl's. FileError where it was changed."""
    if not (folder / "damage.json").is_file():
        return None
    document = from_json(read_cost(folder, as_json=True).encode(), str(folder / "damage.json"), AGAIN)
    try:
        for row in document["recipe"]:
            row |= {"from_type": row.pop("from"), "to_type": row.pop("to")}
        return msgspec.convert({name: value for name, value in document.items()
                                if name not in ("schema", "file", "original")}, Damage, strict=False)
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # msgspec refuses by ValueErrors
        raise FileError(f"{folder / 'damage.json'} is no bill: {error}. {AGAIN}") from error
