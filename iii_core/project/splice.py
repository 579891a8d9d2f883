"""Splices: YAML text in, YAML text out, one small change each, at positions of parsed nodes.

Nothing here decides what should change, or checks the outcome (`iii_core.project.edit` does both): these are the layout
rules of block and flow style.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iii_core.project.layout import Layout, unusual
from iii_core.project.render import render_block, render_flow

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Mapping as AbstractMapping

    from iii_core.project.read import Mapping, Node, Scalar, Sequence


def append_to_empty(text: str, data: AbstractMapping[str, Any]) -> str:
    """Write ``data`` into a file that holds nothing but comments (and perhaps a ``---``)."""
    layout = Layout(text)
    return layout.insert_lines(layout.document_end(), render_block(dict(data), 0))


def append_item(text: str, key: Scalar, node: Sequence, item: AbstractMapping[str, Any]) -> str:
    """Add ``item`` at the end of the list under ``key``. An empty ``[]`` becomes a block list."""
    layout = Layout(text)
    if not node.items and "\n" not in text[node.start : node.end] and not layout.in_flow(key.start):
        return _open_list(text, key, node, item)
    if node.flow:
        last = (node.items[-1].start, node.items[-1].end) if node.items else None
        return _append_flow(layout, last, node.end, render_flow(dict(item)))
    column = layout.column(layout.dash(node, len(node.items) - 1))
    position = layout.past_comments(layout.line_after(node.end), column)
    return layout.insert_lines(position, _item_lines(item, column, _item_offset(layout, node)))


def fill_empty(text: str, key: Scalar, value: Scalar, item: AbstractMapping[str, Any]) -> str:
    """Give a key without a value (``workers:``, ``workers: null``) a list of one item."""
    if Layout(text).in_flow(key.start):
        return f"{text[: value.start].rstrip(' ')} [{render_flow(dict(item))}]{text[value.end :]}"
    return _open_list(text, key, value, item)


def remove_item(text: str, node: Sequence, index: int) -> Iterator[str]:
    """Remove an item with the lines that are its own; an emptied list becomes ``[]``.

    Gives several texts, the most faithful first: a block scalar before the item may need the last line end, and may
    not take the blank lines behind the item for its own (``|+``).
    """
    layout = Layout(text)
    if node.flow:
        yield _remove_flow(layout, [(item.start, item.end) for item in node.items], index)
        return
    start, end = _item_extent(layout, node, index)
    header = layout.before(start)
    empty = "" if len(node.items) > 1 else " []"
    for cut in (
        layout.cut_lines(start, end),
        layout.cut_lines(start, end, trim=False),
        layout.cut_lines(start, layout.past_blank(end)),
    ):
        yield cut[:header] + empty + cut[header:]


def replace_item(text: str, node: Sequence, index: int, item: AbstractMapping[str, Any]) -> str:
    """Write an item anew."""
    layout = Layout(text)
    if node.flow:
        old = node.items[index]
        return text[: old.start] + render_flow(dict(item)) + text[old.end :]
    start, end = _item_extent(layout, node, index)
    column = layout.column(layout.dash(node, index))
    return layout.replace_lines(start, end, _item_lines(item, column, _item_offset(layout, node)))


def insert_pair(text: str, node: Mapping, key: str, value: Any) -> str:
    """Add a key at the end of a mapping."""
    layout = Layout(text)
    if node.flow:
        spans = _pair_spans(node)
        return _append_flow(layout, spans[-1] if spans else None, node.end, render_flow({key: value})[1:-1])
    column = layout.column(node.pairs[0][0].start)
    position = layout.past_comments(layout.line_after(node.end), column - 1)
    return layout.insert_lines(position, render_block({key: value}, column))


def remove_pair(text: str, node: Mapping, key: Scalar, value: Node) -> str | None:
    """Remove a key with its value; None for a block pair that does not begin its line, or is the only one."""
    layout = Layout(text)
    if len(node.pairs) == 1:
        return None
    if node.flow:
        return _remove_flow(layout, _pair_spans(node), [pair[0] for pair in node.pairs].index(key))
    if not layout.begins_line(key.start):
        return None
    end = layout.past_comments(layout.line_after(max(key.end, value.end)), layout.column(key.start))
    return layout.cut_lines(layout.line_start(key.start), end)


def replace_scalar(text: str, node: Scalar, value: str) -> str:
    """Write another text in place of a scalar."""
    return text[: node.start] + render_flow(value) + text[node.end :]


def _open_list(text: str, key: Scalar, empty: Scalar | Sequence, item: AbstractMapping[str, Any]) -> str:
    """Take away what stands for "nothing" behind a key, and begin a block list below it."""
    if empty.start < empty.end:
        text = text[: empty.start].rstrip(" ") + text[empty.end :]
    layout = Layout(text)
    column = layout.column(key.start)
    position = layout.past_comments(layout.next_line(key.end), column)
    return layout.insert_lines(position, _item_lines(item, column + 2, 2))


def _item_lines(item: AbstractMapping[str, Any], column: int, offset: int) -> list[str]:
    lines = render_block(dict(item), column + offset)
    lines[0] = " " * column + "-" + " " * (offset - 1) + lines[0][column + offset :]
    return lines


def _item_offset(layout: Layout, node: Sequence) -> int:
    """From the dash to the content, as the last item that begins on its dash's line has it, else 2."""
    for index in reversed(range(len(node.items))):
        between = layout.text[layout.dash(node, index) + 1 : node.items[index].start]
        if between and not between.strip(" "):
            return len(between) + 1
    return 2


def _item_extent(layout: Layout, node: Sequence, index: int) -> tuple[int, int]:
    """Where the lines of a block item begin and end, comments indented deeper than its dash included."""
    dash = layout.dash(node, index)
    if not layout.begins_line(dash):
        raise unusual()
    end = layout.line_after(max(dash + 1, node.items[index].end))
    return layout.line_start(dash), layout.past_comments(end, layout.column(dash))


def _pair_spans(node: Mapping) -> list[tuple[int, int]]:
    return [(key.start, max(key.end, value.end)) for key, value in node.pairs]


def _append_flow(layout: Layout, last: tuple[int, int] | None, end: int, rendered: str) -> str:
    """Add an item before the closing bracket, behind which is ``end``; ``last`` is the span of the last item."""
    text = layout.text
    if last is None:
        return text[: end - 1] + rendered + text[end - 1 :]
    comma = layout.comma(last[1])
    after = last[1] if comma is None else comma + 1
    if layout.begins_line(last[0]) and layout.ends_line(after):
        indentation = text[layout.line_start(last[0]) : last[0]]
        line_end = layout.next_line(after)
        head = text[: last[1]] + "," + text[last[1] : line_end] if comma is None else text[:line_end]
        return head + indentation + rendered + ("" if comma is None else ",") + layout.newline + text[line_end:]
    return text[:after] + (", " if comma is None else " ") + rendered + text[after:]


def _remove_flow(layout: Layout, spans: list[tuple[int, int]], index: int) -> str:
    text = layout.text
    start, end = spans[index]
    comma = layout.comma(end)
    after = end if comma is None else comma + 1
    if layout.begins_line(start) and layout.ends_line(after):
        return layout.cut_lines(layout.line_start(start), layout.next_line(after))
    if comma is not None:
        while text[after : after + 1] == " ":
            after += 1
    elif index:
        start = layout.comma(spans[index - 1][1]) or start
    return text[:start] + text[after:]
