"""helium-onnx recipes, as users meet it: texts, streams, exit codes, signals."""

from __future__ import annotations

import json
import re

from command_line import assert_plain, invoke, on_terminal

import helium_onnx


class TestRecipes:
    def test_piped_each_is_one_line(self) -> None:
        result = invoke("recipes")
        lines = result.stdout.splitlines()[1:]
        assert [line.split()[0] for line in lines] == [recipe.name for recipe in helium_onnx.list_recipes()]
        for line, recipe in zip(lines, helium_onnx.list_recipes(), strict=True):
            assert recipe.summary in line
            assert line == line.rstrip()
        assert_plain(result.stdout)

    def test_json(self) -> None:
        listed = json.loads(invoke("recipes", "--json").stdout)
        assert listed == [recipe.to_dict() for recipe in helium_onnx.list_recipes()]

    def test_on_a_terminal_nothing_is_cut(self) -> None:
        code, shown = on_terminal("recipes")
        text = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", shown)
        assert code == 0
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= 80
