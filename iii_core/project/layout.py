"""What a YAML text looks like on the page: lines, columns, dashes, commas and comments."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

import yaml

from iii_core.errors import ConfigError
from iii_core.project.read import YAML_LOADER

if TYPE_CHECKING:
    from collections.abc import Sequence as AbstractSequence

    from iii_core.project.read import Sequence

_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # what libyaml takes for a line end
_BREAK_CHARACTERS = "\n\r\x85\u2028\u2029"
_BLANK_OR_COMMENT = re.compile(rf"[ \t]*(#[^{_BREAK_CHARACTERS}]*)?")
_FLOW_OPENS = (yaml.FlowMappingStartToken, yaml.FlowSequenceStartToken)
_FLOW_CLOSES = (yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)


class Layout:
    """One valid YAML text; positions are character offsets, columns count from 0."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def tokens(self) -> list[Any]:
        """PyYAML's tokens, without those of no width."""
        scanned = yaml.scan(self.text, Loader=YAML_LOADER)
        return [token for token in scanned if token.end_mark.index > token.start_mark.index]

    @cached_property
    def newline(self) -> str:
        """The line end this text uses."""
        found = _BREAK.search(self.text)
        return found[0] if found and found[0] in ("\r\n", "\r") else "\n"

    def line_start(self, position: int) -> int:
        """The start of the line that ``position`` is on."""
        return max(self.text.rfind(character, 0, position) for character in _BREAK_CHARACTERS) + 1

    def next_line(self, position: int) -> int:
        """The start of the line after the one that ``position`` is on, or the end of the text."""
        found = _BREAK.search(self.text, position)
        return found.end() if found else len(self.text)

    def line_after(self, end: int) -> int:
        """The start of the line after a node; one that ends with a line end (a block scalar) ends before it."""
        return end if end and self.text[end - 1] in _BREAK_CHARACTERS else self.next_line(end)

    def column(self, position: int) -> int:
        """How far into its line a position is."""
        return position - self.line_start(position)

    def begins_line(self, position: int) -> bool:
        """Whether only blanks stand before ``position`` on its line."""
        return not self.text[self.line_start(position) : position].strip(" \t")

    def ends_line(self, position: int) -> bool:
        """Whether only blanks and a comment follow ``position`` on its line."""
        found = _BLANK_OR_COMMENT.match(self.text, position)
        end = found.end() if found else position
        return end == len(self.text) or self.text[end] in _BREAK_CHARACTERS

    def past_comments(self, position: int, column: int) -> int:
        """``position``, the start of a line, moved past comment lines that are indented deeper than ``column``."""
        reached = position
        while position < len(self.text):
            end = self.next_line(position)
            line = self.text[position:end]
            if line.lstrip().startswith("#"):
                if len(line) - len(line.lstrip(" ")) <= column:
                    break
                reached = end
            elif line.strip():
                break
            position = end
        return reached

    def past_blank(self, position: int) -> int:
        """``position``, the start of a line, moved past blank lines."""
        while position < len(self.text) and not self.text[position : self.next_line(position)].strip():
            position = self.next_line(position)
        return position

    def dash(self, node: Sequence, index: int) -> int:
        """The position of the dash of item ``index`` of a block list: the first dash after the item before it."""
        after = node.items[index - 1].end if index else node.start
        for token in self.tokens:
            if isinstance(token, yaml.BlockEntryToken) and token.start_mark.index >= after:
                return int(token.start_mark.index)
        raise unusual()

    def comma(self, end: int) -> int | None:
        """The position of the comma after an item that ends at ``end``, past comments; None where there is none."""
        for token in self.tokens:
            if token.start_mark.index >= end:
                return int(token.start_mark.index) if isinstance(token, yaml.FlowEntryToken) else None
        return None

    def before(self, position: int) -> int:
        """Where the last thing before ``position`` ends that is not a blank or a comment."""
        return max((int(token.end_mark.index) for token in self.tokens if token.end_mark.index <= position), default=0)

    def in_flow(self, position: int) -> bool:
        """Whether ``position`` is inside braces or brackets."""
        before = [token for token in self.tokens if token.start_mark.index < position]
        opened = sum(isinstance(token, _FLOW_OPENS) for token in before)
        return opened > sum(isinstance(token, _FLOW_CLOSES) for token in before)

    def document_end(self) -> int:
        """Where a document that holds nothing may be written: before its ``...``, else at the end."""
        ends = (token.start_mark.index for token in self.tokens if isinstance(token, yaml.DocumentEndToken))
        return int(next(ends, len(self.text)))

    def insert_lines(self, position: int, lines: AbstractSequence[str]) -> str:
        """The text with lines inserted at a line's start; a text without a last line end gets none."""
        block = self.newline.join(lines)
        if position and self.text[position - 1] not in _BREAK_CHARACTERS:
            return self.text[:position] + self.newline + block + self.text[position:]
        return self.text[:position] + block + self.newline + self.text[position:]

    def replace_lines(self, start: int, end: int, lines: AbstractSequence[str]) -> str:
        """The text with other lines in place of some."""
        last = "" if end == len(self.text) and not self._ends_with_break() else self.newline
        return self.text[:start] + self.newline.join(lines) + last + self.text[end:]

    def cut_lines(self, start: int, end: int, *, trim: bool = True) -> str:
        """The text without some lines; ``trim`` keeps a text without a last line end that way."""
        if trim and start and end == len(self.text) and not self._ends_with_break():
            start -= 2 if self.text[start - 2 : start] == "\r\n" else 1
        return self.text[:start] + self.text[end:]

    def _ends_with_break(self) -> bool:
        return self.text[-1:] in tuple(_BREAK_CHARACTERS)


def unusual() -> ConfigError:
    """The error for a file whose layout leaves no safe place for an edit."""
    return ConfigError("config.yaml is written in a way that cannot be edited safely", hint="make the change by hand")
