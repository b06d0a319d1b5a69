"""Regular expressions as xgrammar can hold them: what it would read in another way is written again or refused."""

from __future__ import annotations

MAX_LENGTH = 1 << 16

_CLASSES = "dDsSwW"
_CONTROLS = "fnrtv"
_ANCHORS = {"A": "the beginning", "Z": "the end", "z": "the end"}
_DOT = r"[^\n\r\u2028\u2029]"


def portable_pattern(pattern: str, name: str = "regex") -> str:
    """A regular expression that xgrammar reads as Python and JavaScript do, for the whole text.

    The dot means any character but a line break. `^` may stand at the beginning and `$` at the end, where both change
    nothing. What no automaton can do is refused: look-around, back references, word boundaries.

    Raises
    ------
    ValueError
        xgrammar would read a part of it in another way, or leave it out.
    """
    if len(pattern) > MAX_LENGTH:
        raise ValueError(f"{name} must have at most {MAX_LENGTH} characters, got {len(pattern)}")
    written: list[str] = []
    i, inside = 0, False
    while i < len(pattern):
        char = pattern[i]
        if char == "\\":
            written.append(_escape(pattern, i, name))
            i += len(written[-1])
            continue
        if inside:
            if char == "[" and pattern[i + 1 : i + 2] in (":", ".", "="):
                raise ValueError(f"{name} must not have POSIX classes such as [:alpha:], got {pattern!r}")
            inside = char != "]"
        elif char == "[":
            inside = True
        elif pattern.startswith("(?", i) and pattern[i + 2 : i + 3] != ":":
            raise ValueError(
                f"{name} must not have look-around, flags or names, got {pattern[i : i + 4]!r} in {pattern!r}"
            )
        elif char == ".":
            char = _DOT
        elif (char == "^" and i > 0) or (char == "$" and i + 1 < len(pattern)):
            raise ValueError(
                f"{name} must have {char!r} at its {'beginning' if char == '^' else 'end'} only, got {pattern!r}"
            )
        written.append(char)
        i += 1
    return "".join(written)


def _escape(pattern: str, i: int, name: str) -> str:
    """The escape that begins at i."""
    char = pattern[i + 1 : i + 2]
    if char in ("x", "u"):
        digits = 2 if char == "x" else 4
        code = pattern[i + 2 : i + 2 + digits]
        if len(code) == digits and all(c in "0123456789abcdefABCDEF" for c in code):
            return pattern[i : i + 2 + digits]
    elif char in _CLASSES or char in _CONTROLS or not char.isalnum():
        if char:
            return pattern[i : i + 2]
    elif char in "bB":
        raise ValueError(f"{name} must not have word boundaries (\\{char}), got {pattern!r}")
    elif char in _ANCHORS:
        raise ValueError(f"{name} stands for the whole text: leave out \\{char}, {_ANCHORS[char]}, got {pattern!r}")
    raise ValueError(f"{name} must have escapes that can be enforced, got {pattern[i : i + 2]!r} in {pattern!r}")
