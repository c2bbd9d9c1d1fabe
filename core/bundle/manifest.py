"""Turn a trace's facts into manifest.json's document, and back. The cells' numbers stand in the tables, not here."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import metadata
from typing import Any

from core.bundle.tables import channel_extras
from core.model.stages import Place, parse_place, parse_stored_scope, place_text
from core.system.errors import FileError, UsageError
from core.system.json_text import number, to_json, to_plain
from core.system.limits import LAYERS
from core.trace.record import CaptureContract, NextToken, Token, Trace, is_token_id

SCHEMA = "apr-tui/1"
NOT_MEASURED = "NOT_MEASURED"
PACKAGES = ("apr-tui", "numpy", "polars", "torch")
FACTS = tuple(f.name for f in fields(CaptureContract))
# what is read back of the origin, and its type
ORIGIN = {"header_sha256": str, "digest": str, "printed_decimals": int, "printed_digits": int}


def manifest_text(trace: Trace, scope: str, extra: Mapping[str, object], sha256: Mapping[str, str]) -> str:
    """Write the manifest, one line a key and one line a cell of channels."""
    witness = trace.observed_equals_unobserved
    document: dict[str, object] = {
        "schema": SCHEMA, "model": trace.name, "planted": trace.planted, "scope": scope, "tokens": trace.tokens,
        "witness": NOT_MEASURED if witness is None else witness,
        **{name: getattr(trace.facts, name) for name in FACTS}, "seed": trace.origin.get("seed"),
        "origin": _origin(trace), "versions": versions(), **extra, "top": trace.top, "generated": trace.generated,
        "notes": trace.notes, "sha256": sha256,
    }
    lines = [f"{to_json(key)}: {to_json(value)}" for key, value in document.items()]
    channels = [f"  {to_json(place_text(p))}: {to_json(v)}" for p, v in channel_extras(trace.cells).items()]
    lines.append('"channels": {\n' + ",\n".join(channels) + "\n}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _origin(trace: Trace) -> Mapping[str, Any]:
    """The origin with the digest of the file's bytes, where it has one; waits for it."""
    digest = trace.digest
    return trace.origin if digest is None else {**trace.origin, "digest": digest}


def versions() -> dict[str, str | None]:
    """Name the versions that the numbers depend on; None where a package is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "platform": sys.platform}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest as it was read; a key of the wrong type is a FileError that names it."""

    name: str  # of the file, for messages
    document: Mapping[str, Any]

    def get(self, key: str, kind: type | tuple[type, ...], needed: bool = False) -> Any:  # noqa: ANN401
        """Return a key's value, None where it is absent or null."""
        value = self.document.get(key)
        if value is None and not needed:
            return None
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join(k.__name__ for k in kinds)
            raise FileError(f"{self.name}: key {key!r} is {type(value).__name__}, {names} was needed. Trace again.")
        return value

    def facts(self) -> CaptureContract:
        """Read the capture contract."""
        numbers = ("n_layer", "d_model", "n_vocab", "threads")
        known = {f: self.get(f, int if f in numbers else str) for f in FACTS if f != "scopes"}
        if not 0 <= (known["n_layer"] or 0) <= LAYERS:
            raise FileError(f"{self.name}: key 'n_layer' is {known['n_layer']}; 0 to {LAYERS} was needed. "
                            "Trace again.")
        try:
            scopes = tuple(parse_stored_scope(str(s)) for s in self.get("scopes", list) or ())
        except UsageError as error:
            raise FileError(f"{self.name}: key 'scopes': {error} Trace again.") from error
        return CaptureContract(**known, scopes=scopes)

    def origin(self) -> Mapping[str, Any]:
        """Read where the numbers come from."""
        found: Mapping[str, Any] = self.get("origin", dict) or {}
        for key, kind in ORIGIN.items():
            Manifest(f"{self.name}, origin", found).get(key, kind)
        return found

    def tokens(self) -> tuple[Token, ...]:
        """Read the input's tokens."""
        entries = self.get("tokens", list) or ()
        found = tuple(Token(*self._entry(entry, "tokens", id=int, text=(str, type(None)))) for entry in entries)
        if not all(is_token_id(token.id) for token in found):
            raise FileError(f"{self.name}: key 'tokens' holds an id that no vocabulary has. Trace again.")
        return found

    def top(self) -> tuple[NextToken, ...]:
        """Read the likeliest next tokens."""
        kinds = {"id": int, "text": (str, type(None)), "logit": (float, int, str)}
        entries = (self._entry(t, "top", **kinds) for t in self.get("top", list) or ())
        try:
            return tuple(NextToken(i, text, number(logit) or 0.0) for i, text, logit in entries)
        except ValueError as error:
            raise FileError(f"{self.name}: key 'top': {error}. Trace again.") from error

    def witness(self) -> bool | None:
        """Read the witness's word; None where it was left out."""
        value = self.get("witness", (bool, str))
        return value if isinstance(value, bool) else None

    def channels(self) -> dict[Place, Mapping[str, object]]:
        """Read what the tables have no column for."""
        found: dict[Place, Mapping[str, object]] = {}
        for name, extras in (self.get("channels", dict) or {}).items():
            try:
                place = parse_place(name)
            except UsageError as error:
                raise FileError(f"{self.name}: key 'channels': {error} Trace again.") from error
            if not isinstance(extras, dict):
                raise FileError(f"{self.name}: key 'channels' has {extras!r:.80} at {name}; an object was needed. "
                                "Trace again.")
            found[place] = extras
        return found

    def _entry(self, entry: object, key: str, **kinds: Any) -> list[Any]:  # noqa: ANN401
        if not isinstance(entry, dict) or not all(isinstance(entry.get(k), kind) for k, kind in kinds.items()):
            needed = ", ".join(kinds)
            raise FileError(f"{self.name}: key {key!r} holds {to_plain(entry)!r}; {needed} were needed. Trace again.")
        return [entry.get(k) for k in kinds]


def check_schema(manifest: Manifest) -> None:
    """Refuse a document that is no bundle's manifest of this schema; FileError."""
    schema = manifest.document.get("schema")
    if schema != SCHEMA:
        way_out = "Open it with the version that wrote it"
        raise FileError(f"{manifest.name} has schema {schema!r}; this build reads {SCHEMA}. {way_out}.")
