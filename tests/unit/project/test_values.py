"""Names, durations, quantities, variables and environments: the small grammars."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iii_core import __version__
from iii_core.errors import InvalidName, InvalidValue, UnsetVariable
from iii_core.project.durations import parse_duration
from iii_core.project.env import (
    config_from_image_env,
    flatten_config,
    patch_url_argument,
    requested_url,
)
from iii_core.project.expand import escape, expand
from iii_core.project.names import check_name, is_valid_name
from iii_core.project.quantities import parse_cpus, parse_memory_mib


class TestNames:
    @pytest.mark.parametrize("name", ["a", "A-b_c.9", "-x", "x" * 128, "a.b"])
    def test_valid(self, name: str) -> None:
        assert check_name(name) == name
        assert is_valid_name(name)

    @pytest.mark.parametrize(
        "name", ["", ".", "..", ".x", "a..b", "../x", "a/b", "a b", "a\n", "\n", "é", "a\x00", "x" * 129, "a\\b", "a:b"]
    )
    def test_invalid(self, name: str) -> None:
        assert not is_valid_name(name)
        with pytest.raises(InvalidName) as caught:
            check_name(name)
        assert caught.value.code == "W100"
        assert caught.value.exit_code == 1
        assert caught.value.details["name"] == name

    @given(st.text(max_size=20))
    def test_valid_names_are_safe_file_names(self, name: str) -> None:
        if is_valid_name(name):
            assert "/" not in name
            assert "\0" not in name
            assert name not in (".", "..")


class TestDurations:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("30s", 30), ("1500ms", 1.5), ("5m", 300), ("1h 30m", 5400), ("2min5s", 125), ("0s", 0), ("1 day", 86400),
            ("2 weeks", 1209600), ("1M", 2630016), ("1m", 60), ("1y", 31557600), ("10ns", 1e-8), ("3us", 3e-6),
            ("3µs", 3e-6), (" 1s ", 1), ("1h2h", 10800), ("1minute 1second", 61), ("500 millis", 0.5),
        ],
    )  # fmt: skip
    def test_valid(self, text: str, seconds: float) -> None:
        assert parse_duration(text) == pytest.approx(seconds)

    @pytest.mark.parametrize(
        "text",
        ["", " ", "30", "s", "-1s", "1.5s", "1x", "1s 5", "one second", "1 s s", "1S", "٣s", "1s,2s", "9" * 30 + "s"],
    )
    def test_invalid(self, text: str) -> None:
        with pytest.raises(InvalidValue) as caught:
            parse_duration(text)
        assert caught.value.exit_code == 1


class TestQuantities:
    @pytest.mark.parametrize(
        ("value", "mib"),
        [
            (512, 512),
            ("512Mi", 512),
            ("2Gi", 2048),
            ("1048576Ki", 1024),
            ("1048576", 1),
            ("1", 1),
            ("1M", 1),
            ("1G", 954),
        ],
    )
    def test_memory(self, value: Any, mib: int) -> None:
        assert parse_memory_mib(value) == mib

    @pytest.mark.parametrize("value", [0, -1, 1.5, True, "", "Mi", "1 Gi", "1gb", "-1Mi", "0", None, [1]])
    def test_no_memory(self, value: Any) -> None:
        with pytest.raises(ValueError, match="expected"):
            parse_memory_mib(value)

    @pytest.mark.parametrize(("value", "cpus"), [(2, 2.0), (0.5, 0.5), ("1.5", 1.5), ("500m", 0.5), ("2", 2.0)])
    def test_cpus(self, value: Any, cpus: float) -> None:
        assert parse_cpus(value) == cpus

    @pytest.mark.parametrize("value", [0, -1, "0", "x", "1,5", "", True, None, float("nan"), float("inf"), "1e3"])
    def test_no_cpus(self, value: Any) -> None:
        with pytest.raises(ValueError, match="expected"):
            parse_cpus(value)


ENVIRON = {"PORT": "3111", "YES": "true", "NAME": "x: # y", "EMPTY": "", "ZIP": "007", "PI": "3.10", "NULL": "null"}


class TestExpand:
    @pytest.mark.parametrize(
        ("value", "typed", "text"),
        [
            ("${PORT}", 3111, "3111"),
            ("${YES}", True, "true"),
            ("${PI}", 3.1, "3.10"),
            ("${ZIP}", "007", "007"),
            ("${NULL}", "null", "null"),
            ("${EMPTY}", "", ""),
            ("${NOPE:}", "", ""),
            ("${NOPE:a:b}", "a:b", "a:b"),
            ("${NOPE:8080}", 8080, "8080"),
            ("${EMPTY:unused}", "", ""),
            ("http://h:${PORT}/${NAME}", "http://h:3111/x: # y", "http://h:3111/x: # y"),
            ("${PORT}${PORT}", "31113111", "31113111"),
            ("$PORT ${} $$ $", "$PORT ${} $$ $", "$PORT ${} $$ $"),
            ("$${PORT}", "${PORT}", "${PORT}"),
            ("a $${PORT} $${ ${PORT} $$${PORT}", "a ${PORT} ${ 3111 $${PORT}", "a ${PORT} ${ 3111 $${PORT}"),
            ("${NOPE:$${}", "$${", "$${"),
            ("${V:__III_ENGINE_VERSION__}", __version__, __version__),
            (5, 5, 5),
            (None, None, None),
            (["${PORT}", {"k": "${YES}"}], [3111, {"k": True}], ["3111", {"k": "true"}]),
            ({"${PORT}": 1}, {"${PORT}": 1}, {"${PORT}": 1}),
        ],
    )  # fmt: skip
    def test_values(self, value: Any, typed: Any, text: Any) -> None:
        assert expand(value, ENVIRON, owner="worker 'w'") == typed
        assert expand(value, ENVIRON, owner="worker 'w'", typed=False) == text

    def test_what_comes_out_is_not_expanded_again(self) -> None:
        assert expand("${A}", {"A": "${B}", "B": "x"}, owner="w") == "${B}"

    def test_unset(self) -> None:
        with pytest.raises(UnsetVariable) as caught:
            expand({"a": ["ok", "pre ${MISSING} post"]}, {"SECRET": "canary"}, owner="worker 'w'")
        assert caught.value.message == "worker 'w' needs the environment variable MISSING, which is not set"
        assert "canary" not in str(caught.value)
        assert caught.value.code == "W133"

    @pytest.mark.parametrize("text", ["${A}", "$${A}", "$$${A:x}${B}", "${A:${B}}", "$", "${", "$$", "a$${{}${}$"])
    def test_what_is_escaped_is_literal(self, text: str) -> None:
        assert expand(escape(text), {"A": "s3cr3t", "B": "s3cr3t"}, owner="w") == text


class TestEnvironment:
    def test_flatten(self) -> None:
        config: Any = {
            "LOG_LEVEL": "debug",
            "s3": {"bucket": "pics", "retries": 3, "tags": ["a", "b"], "deep": {"x": None}},
            "on": True, "pi": 1.5, "empty": {}, "list": [{"é": 1}], "text": "a\nb", "my-key": "v",
        }  # fmt: skip
        assert flatten_config(config) == {
            "LOG_LEVEL": "debug", "S3_BUCKET": "pics", "S3_RETRIES": "3", "S3_TAGS": '["a","b"]', "S3_DEEP_X": "null",
            "ON": "true", "PI": "1.5", "LIST": '[{"é":1}]', "TEXT": "a\nb", "MY-KEY": "v",
        }  # fmt: skip

    def test_the_last_of_two_colliding_names_wins(self) -> None:
        assert flatten_config({"a": {"b": "1"}, "a_b": "2"}) == {"A_B": "2"}
        assert flatten_config({"a_b": "2", "A": {"B": "1"}}) == {"A_B": "1"}

    @pytest.mark.parametrize("config", [None, [], "x", 5])
    def test_what_is_no_mapping_gives_nothing(self, config: Any) -> None:
        assert flatten_config(config) == {}

    def test_image_environment(self) -> None:
        env = [
            ("PATH", "/bin"),
            ("ZED", "1"),
            ("HOME", "/"),
            ("FOO", "bar"),
            ("LANG", "C"),
            ("TERM", "x"),
            ("HOSTNAME", "h"),
        ]
        assert list(config_from_image_env(env).items()) == [("FOO", "bar"), ("ZED", "1")]

    def test_an_image_reads_nothing_out_of_the_environment(self) -> None:
        env = [("LEAK", "${TOKEN}"), ("API_URL", "http://evil/?t=${TOKEN}&u=$${TOKEN:x}")]
        config = config_from_image_env(env)
        assert expand(dict(config), {"TOKEN": "s3cr3t"}, owner="w", typed=False) == dict(env)

    def test_requested_url(self) -> None:
        assert requested_url({"III_URL": "a", "III_ENGINE_URL": "b"}) == "b"
        assert requested_url({"III_URL": "a", "III_ENGINE_URL": ""}) == "a"
        assert requested_url({}) is None

    @pytest.mark.parametrize(
        ("argv", "append", "expected"),
        [
            (["w"], False, ["w"]),
            (["w"], True, ["w", "--url", "U"]),
            (["w", "--url", "x", "-v"], False, ["w", "--url", "U", "-v"]),
            (["w", "--url=x", "--url=y"], True, ["w", "--url=U", "--url=y"]),
            (["w", "--url"], True, ["w", "--url"]),
            (["w", "--", "--url", "x"], False, ["w", "--", "--url", "x"]),
            (["w", "--urls", "x"], False, ["w", "--urls", "x"]),
        ],
    )
    def test_url_argument(self, argv: list[str], append: bool, expected: list[str]) -> None:
        assert patch_url_argument(argv, "U", append=append) == tuple(expected)
