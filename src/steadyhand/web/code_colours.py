"""Colours of code in a diff: comments, strings, numbers and keywords of common languages, line by line.

The text is hostile, so the work has to be linear in its length. Each pattern here matches without a way to fail once it
has begun, so nothing is tried twice. Highlighters with a grammar for each language do not promise that.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, NamedTuple

from markupsafe import Markup, escape

MAX_TOKENS = 200
"""Coloured parts of one line; the rest of the line has no colours."""
MAX_PAGE_TOKENS = 60_000
"""Coloured parts of all lines of a page."""
_LONGEST_NAME = 200

TokenKind = Literal["", "c", "s", "n", "k"]
"""Plain text, comment, string, number, keyword; the last part of the class of its element."""
Tokens = Sequence[tuple[TokenKind, str]]


class OpenPart(NamedTuple):
    """A comment or string that goes on in the next line, and what ends it."""

    kind: TokenKind
    end: str


@dataclass(frozen=True)
class Language:
    """The parts of a language that have colours. `comments` are patterns; `blocks` and `texts` may span lines."""

    keywords: frozenset[str] = frozenset()
    comments: Sequence[str] = ()
    blocks: Mapping[str, str] = field(default_factory=dict)
    texts: Sequence[str] = ()
    quotes: Sequence[str] = ('"', "'")
    """The characters that begin and end a string within a line."""
    ignores_case: bool = False


_C_BLOCK = {"/*": "*/"}
_SLASHES, _HASH, _HASH_WORD = ("//",), ("#",), (r"(?<!\S)#",)
_C_WORDS = "break case const continue default do else enum for goto if return static struct switch void while"
_JAVA_WORDS = (
    f"{_C_WORDS} abstract class extends final finally boolean byte char double float implements import instanceof int "
    "interface long native new null package private protected public short super synchronized this throw throws "
    "transient true false try volatile var record yield sealed permits catch"
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LANGUAGES: Mapping[str, Language] = {
    "python": Language(
        _words(
            "and as assert async await break case class continue def del elif else except finally for from global if "
            "import in is lambda match nonlocal not or pass raise return try while with yield None True False self"
        ),
        _HASH,
        texts=('"""', "'''"),
    ),
    "javascript": Language(
        _words(
            f"{_C_WORDS} abstract any as async await boolean catch class declare delete export extends false finally "
            "from function get implements import in instanceof interface keyof let namespace never new null number of "
            "private protected public readonly set string super this throw true try type typeof undefined unknown var "
            "yield satisfies"
        ),
        _SLASHES,
        _C_BLOCK,
        texts=("`",),
    ),
    "go": Language(
        _words(
            "break case chan const continue default defer else fallthrough for func go goto if import interface map "
            "package range return select struct switch type var nil true false bool string int int64 error byte rune"
        ),
        _SLASHES,
        _C_BLOCK,
        texts=("`",),
    ),
    "rust": Language(
        _words(
            "as async await break const continue crate dyn else enum extern false fn for if impl in let loop match mod "
            "move mut pub ref return self Self static struct super trait true type unsafe use where while"
        ),
        _SLASHES,
        _C_BLOCK,
        quotes=('"',),
    ),
    "c": Language(
        _words(
            f"{_C_WORDS} auto bool char class constexpr delete double explicit extern false float friend inline int "
            "long namespace new nullptr NULL operator override private protected public register short signed sizeof "
            "template this throw true try catch typedef typename union unsigned using virtual volatile"
        ),
        (*_SLASHES, r"^\s*#(?=\s*\w)"),
        _C_BLOCK,
    ),
    "java": Language(_words(_JAVA_WORDS), _SLASHES, _C_BLOCK, texts=('"""',)),
    "kotlin": Language(
        _words(
            f"{_JAVA_WORDS} fun val when is in object companion override data internal open lateinit suspend"
        ),
        _SLASHES,
        _C_BLOCK,
        texts=('"""',),
    ),
    "csharp": Language(
        _words(
            f"{_JAVA_WORDS} as async await base bool decimal delegate event explicit foreach get in is lock namespace "
            "object operator out override params readonly ref sbyte set string struct typeof uint using virtual where"
        ),
        _SLASHES,
        _C_BLOCK,
    ),
    "swift": Language(
        _words(
            f"{_C_WORDS} actor as associatedtype async await catch class defer extension false fileprivate func guard "
            "import in init inout internal is lazy let nil open override private protocol public self Self some super "
            "throw throws true try var weak where"
        ),
        _SLASHES,
        _C_BLOCK,
        texts=('"""',),
    ),
    "php": Language(
        _words(
            f"{_C_WORDS} abstract and array as catch class clone declare echo elseif extends false final finally fn "
            "foreach function global implements include instanceof interface namespace new null or print private "
            "protected public readonly require require_once self throw trait true try use var yield match"
        ),
        (*_SLASHES, *_HASH),
        _C_BLOCK,
    ),
    "ruby": Language(
        _words(
            "alias and begin break case class def defined? do else elsif end ensure false for if in module next nil "
            "not or redo rescue retry return self super then true undef unless until when while yield require "
            "attr_reader attr_accessor private protected public"
        ),
        _HASH_WORD,
    ),
    "shell": Language(
        _words(
            "case do done elif else esac export fi for function if in local readonly return select set shift source "
            "then trap unset until while echo exit"
        ),
        _HASH_WORD,
    ),
    "lua": Language(
        _words(
            "and break do else elseif end false for function goto if in local nil not or repeat return then true until "
            "while"
        ),
        ("--",),
        {"--[[": "]]"},
    ),
    "sql": Language(
        _words(
            "add all alter and as asc between by case check column commit constraint create cross default delete desc "
            "distinct drop else end exists foreign from full group having if in index inner insert into is join key "
            "left like limit not null offset on or order outer primary references returning right rollback select set "
            "table then union unique update using values view when where with begin"
        ),
        ("--",),
        _C_BLOCK,
        ignores_case=True,
    ),
    "css": Language(
        _words("important media import supports keyframes font-face layer container"), (), _C_BLOCK
    ),
    "scss": Language(
        _words("media import include mixin extend use function return if else"), _SLASHES, _C_BLOCK
    ),
    "markup": Language(blocks={"<!--": "-->"}),
    "yaml": Language(_words("true false null yes no on off"), _HASH_WORD),
    "toml": Language(_words("true false"), _HASH, texts=('"""', "'''")),
    "ini": Language(comments=(r"^\s*[;#]",)),
    "json": Language(_words("true false null"), quotes=('"',)),
    "make": Language(
        _words("define else endef endif export ifdef ifeq ifndef ifneq include override"), _HASH_WORD
    ),
    "docker": Language(
        _words(
            "ADD ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL RUN SHELL USER VOLUME WORKDIR AS"
        ),
        _HASH_WORD,
    ),
}
_SUFFIXES: Mapping[str, str] = {
    suffix: name
    for name, suffixes in {
        "python": "py pyi pyw bzl star",
        "javascript": "js jsx mjs cjs ts tsx mts cts vue svelte",
        "go": "go",
        "rust": "rs",
        "c": "c h cc cpp cxx hpp hh hxx m mm ino proto",
        "java": "java groovy gradle scala",
        "kotlin": "kt kts",
        "csharp": "cs",
        "swift": "swift",
        "php": "php",
        "ruby": "rb rake gemspec",
        "shell": "sh bash zsh ksh fish env",
        "lua": "lua",
        "sql": "sql",
        "css": "css",
        "scss": "scss less sass",
        "markup": "html htm xml svg xhtml jinja j2",
        "yaml": "yaml yml",
        "toml": "toml",
        "ini": "ini cfg conf properties service editorconfig",
        "json": "json jsonc json5 jsonl",
        "make": "mk",
    }.items()
    for suffix in suffixes.split()
}
_FILES: Mapping[str, str] = {
    "makefile": "make",
    "gnumakefile": "make",
    "dockerfile": "docker",
    "containerfile": "docker",
    "gemfile": "ruby",
    "rakefile": "ruby",
    "jenkinsfile": "java",
    "build": "python",
}


def language_of(path: str) -> str | None:
    """Return the name of the language of a file by its name; None if it is not known."""
    name = path[-_LONGEST_NAME:].rpartition("/")[2].lower()
    return _FILES.get(name) or _SUFFIXES.get(name.rpartition(".")[2] if "." in name else "")


@cache
def _pattern(name: str) -> re.Pattern[str]:
    """Return the pattern of what begins a coloured part. Every part of it matches in one go, or fails at once."""
    language = _LANGUAGES[name]
    openers = sorted((*language.blocks, *language.texts), key=len, reverse=True)
    strings = [
        rf"(?<!\w){quote}(?:[^{quote}\\]|\\.)*{quote}?"
        if quote == "'"
        else rf"{quote}(?:[^{quote}\\]|\\.)*{quote}?"
        for quote in language.quotes
    ]
    alternatives = {
        "opener": "|".join(map(re.escape, openers)),
        "comment": "|".join(language.comments),
        "string": "|".join(strings),
        "number": r"\d[\w.]*",
        "word": r"[^\W\d][\w?-]*" if name in ("css", "ruby") else r"[^\W\d]\w*",
    }
    return re.compile("|".join(f"(?P<{kind}>{text})" for kind, text in alternatives.items() if text))


@cache
def _rest_of_text(end: str) -> re.Pattern[str]:
    """Return the pattern of a string up to its end, or up to the end of the line."""
    close = re.escape(end)
    return re.compile(rf"(?:\\.|(?!{close})[\s\S])*(?P<close>{close})?")


def line_tokens(name: str, line: str, part: OpenPart | None) -> tuple[Tokens, OpenPart | None]:
    """Return the parts of a line that begins within `part`, and the part that goes on in the next line."""
    language, pattern = _LANGUAGES[name], _pattern(name)
    tokens: list[tuple[TokenKind, str]] = []
    position = plain_from = 0
    while len(tokens) < MAX_TOKENS:
        if part is not None:
            end, is_closed = _end_of(part, line, position)
            tokens.append((part.kind, line[position:end]))
            if not is_closed:
                return tokens, part
            part, position, plain_from = None, end, end
        match = pattern.search(line, position)
        if match is None:
            break
        position = match.end()
        kind = _kind(language, match)
        if kind == "":
            continue
        if plain_from < match.start():
            tokens.append(("", line[plain_from : match.start()]))
        if kind == "c" and match.lastgroup == "comment":
            tokens.append(("c", line[match.start() :]))
            return tokens, None
        tokens.append((kind, match[0]))
        plain_from = position
        if match.lastgroup == "opener":
            part = OpenPart(kind, language.blocks.get(match[0], match[0]))
    if plain_from < len(line):
        tokens.append(("", line[plain_from:]))
    return tokens, part


def _end_of(part: OpenPart, line: str, position: int) -> tuple[int, bool]:
    """Return where a comment or string ends in a line; and False if it goes on in the next one."""
    if part.kind == "c":
        found = line.find(part.end, position)
        return (len(line), False) if found < 0 else (found + len(part.end), True)
    match = _rest_of_text(part.end).match(line, position)
    return (len(line), False) if match is None else (match.end(), match["close"] is not None)


def _kind(language: Language, match: re.Match[str]) -> TokenKind:
    group = match.lastgroup
    if group == "word":
        word = match[0].lower() if language.ignores_case else match[0]
        return "k" if word in language.keywords else ""
    if group == "opener":
        return "c" if match[0] in language.blocks else "s"
    return "c" if group == "comment" else "s" if group == "string" else "n"


class HunkColours:
    """Colours the lines of one hunk, whose old and new lines each follow one another."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._old: OpenPart | None = None
        self._new: OpenPart | None = None

    def tokens(self, kind: Literal["same", "added", "removed"], text: str) -> Tokens:
        """Return the parts of the next line."""
        if kind == "removed":
            tokens, self._old = line_tokens(self._name, text, self._old)
            return tokens
        before, (tokens, self._new) = self._new, line_tokens(self._name, text, self._new)
        if kind == "same":
            same_start = before == self._old
            self._old = self._new if same_start else line_tokens(self._name, text, self._old)[1]
        return tokens


def tokens_html(tokens: Tokens) -> Markup:
    """Return the parts of a line as HTML."""
    return Markup("").join(
        Markup('<span class="c-{}">{}</span>').format(kind, text) if kind else escape(text)
        for kind, text in tokens
    )
