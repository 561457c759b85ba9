"""docs/emulator.md: its tables have what the code has, and its example runs."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import sys
from pathlib import Path

from pydantic import BaseModel
from typer.testing import CliRunner

import relay.emulator.apis.verifying
from relay.cli import app
from relay.emulator.apis.call_data import Transcription, TranscriptionsRequest
from relay.emulator.apis.cti.messages import FROM_CLIENT, FROM_SERVER
from relay.emulator.apis.cti.server import PATH as CTI_PATH
from relay.emulator.apis.signing_faults import SIGNED_PATHS
from relay.emulator.recordings.models import Metadata, RecordingList, RecordingState
from tests.support.benches.apis import open_apis

PAGE = (Path(__file__).parents[3] / "docs" / "emulator.md").read_text()
SECTION = PAGE.partition("\n## APIs\n")[2].partition("\n## ")[0]
DEFAULT = "127.0.0.1:8080"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)


async def test_the_table_has_every_endpoint_with_its_mark(tmp_path: Path) -> None:
    listed = {(method, path.replace("{id}", "{}"), mark) for method, path, mark in ENDPOINT.findall(SECTION)}
    listed = {(method, re.sub(r"\{\w+\}", "{}", path), mark) for method, path, mark in listed}
    async with open_apis(tmp_path) as apis:
        served = {(each.method, re.sub(r"\{\w+\}", "{}", each.path), str(each.mark)) for each in apis.site.endpoints}
    assert listed == {each for each in served if each[1] != "/openapi.json"}


async def test_a_wrong_path_is_looked_for_among_all_that_take_signatures(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        signed = {each.path for each in apis.site.endpoints if each.security and each.security.name == "signature"}
    assert {*SIGNED_PATHS} == {path for path in signed if "{" not in path} | {CTI_PATH}


ENDPOINT = re.compile(r"^\| `([A-Z]+) (\S+)` \| (\w+) \|", re.MULTILINE)
MESSAGE = re.compile(r"^\| (client|server) \| `(\w+)` \| (\w+) \| (.*) \|$", re.MULTILINE)


def test_the_table_has_every_message_of_cti_with_its_mark() -> None:
    listed = {(end, name, mark) for end, name, mark, _ in MESSAGE.findall(SECTION)}
    ours = {("client", name, str(model.mark)) for name, model in FROM_CLIENT.items()}
    assert listed == ours | {("server", name, str(model.mark)) for name, model in FROM_SERVER.items()}


def test_the_fields_that_it_names_exist() -> None:
    for end, name, _, told in MESSAGE.findall(SECTION):
        model = (FROM_CLIENT if end == "client" else FROM_SERVER)[name]
        fields = {field.alias for field in model.model_fields.values()}
        assert set(re.findall(r"`(\w+)`", told)) <= fields


def test_the_table_has_every_code_of_a_refusal() -> None:
    source = Path(relay.emulator.apis.verifying.__file__).read_text()
    codes = set(re.findall(r'SignatureRefused\((\d+), "(\w+)"', source))
    rows = re.findall(r"^\| (\d+) \| (`[`\w, ]+) \|", SECTION, re.MULTILINE)
    assert {(status, code) for status, listed in rows for code in re.findall(r"\w+", listed)} == codes


def test_the_example_of_metadata_is_metadata() -> None:
    example = next(each for each in blocks("json") if "media_bytes" in each)
    Metadata.model_validate(json.loads(example.replace("…", "0" * 64)))


def test_the_other_examples_are_what_the_models_take() -> None:
    models: dict[str, type[BaseModel]] = {
        '{"beginDate"': TranscriptionsRequest,
        '"synthetic"': Transcription,
        '"next_page_token"': RecordingList,
    }
    for sign, model in models.items():
        (example,) = [each for each in blocks("json") if sign in each]
        named = json.loads(example).keys() | {"nextPageToken"}
        assert {field.alias or name for name, field in model.model_fields.items()} <= named
        model.model_validate_json(example)


def test_the_states_of_a_recording_are_all_explained() -> None:
    states = set(re.findall(r"^\| `(\w+)` \| [^|]+ \|$", SECTION.partition("\n### Recordings\n")[2], re.MULTILINE))
    assert states == {*RecordingState}


async def test_the_example_runs(tmp_path: Path) -> None:
    (example,) = blocks("python")
    async with open_apis(tmp_path) as apis:
        assert DEFAULT in example
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-c", example.replace(DEFAULT, apis.host), stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        assert process.returncode == 0
        assert [user["userName"] for user in json.loads(output)["users"]] == ["Anna Keller"]


def test_the_commands_that_it_shows_work() -> None:
    export, signing, checking = blocks("sh")[0].replace("\\\n", " ").splitlines()
    name, secret = shlex.split(export)[1].split("=")
    env = {name: secret}
    signed = CliRunner().invoke(app, shlex.split(signing)[1:], env=env)
    assert signed.exit_code == 0
    headers = dict(word.split(": ", 1) for word in shlex.split(signed.stdout) if ": " in word)
    given = checking.replace("$AUTHORIZATION", headers["Authorization"]).replace("$DATE", headers["Date"])
    checked = CliRunner().invoke(app, shlex.split(given)[1:], env=env)
    assert (checked.exit_code, checked.stdout[:6]) == (0, "right:")
