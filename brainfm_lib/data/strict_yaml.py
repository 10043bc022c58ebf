"""YAML that means what it says: plain values, no key twice, no merging, no small file that unfolds into a large one."""

from __future__ import annotations

from typing import Any

import yaml

MOST_VALUES = 100_000  # in a file, anchors written out
MOST_LETTERS = 2_000_000


def load_yaml(text: str) -> Any:
    """Read one YAML document of plain values.

    Raises:
        yaml.YAMLError: It is not valid, has a tag, a key twice, a merge key, values that unfold or nest without end, or
            is of a size that nobody writes.
    """
    if len(text) > MOST_LETTERS:
        raise yaml.YAMLError(f"it has more than {MOST_LETTERS:,} letters")
    try:
        content = yaml.load(text, Loader=_StrictLoader)
        _unfolded(content, {}, set())
    except RecursionError:
        raise yaml.YAMLError("its values are nested too deep") from None
    except (ValueError, OverflowError) as error:  # a date that is none, a number of too many digits
        raise yaml.YAMLError(str(error)) from error
    return content


def _unfolded(value: Any, known: dict[int, int], open_now: set[int]) -> int:
    """How many values there are with every anchor written out."""
    if not isinstance(value, dict | list):
        return 1
    key = id(value)
    if key in open_now:
        raise yaml.YAMLError("an anchor contains itself")
    if key not in known:
        open_now.add(key)
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        known[key] = 1 + sum(_unfolded(part, known, open_now) for part in parts)
        open_now.discard(key)
        if known[key] > MOST_VALUES:
            raise yaml.YAMLError(f"its anchors unfold into more than {MOST_VALUES:,} values")
    return known[key]


class _StrictLoader(yaml.SafeLoader):
    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, "the merge key << is not read: write its values out", key_node.start_mark
                )

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Plain YAML silently keeps the last of two equal keys."""
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key_node.value!r} is given twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)
