"""The joined parts: keys that are tied to a policy, at the start and over a reload."""

from __future__ import annotations

import hashlib
import logging

import pytest
from kit.stage import AS_ASKED, stage

from router.classify.correction import Correction, write_correction
from router.errors import SettingsError

pytestmark = pytest.mark.anyio


def keys_file(folder, policy: str) -> str:
    path = folder / "keys.yaml"
    digest = hashlib.sha256(b"sk-client").hexdigest()
    path.write_text(f"keys:\n  - {{name: search-team, sha256: {digest}, tenant: search, policy: {policy}}}\n")
    return str(path)


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(("policy", "hint"), [("hiaku", "did you mean `haiku`?"), ("zzz", "is the folder of policies")])
async def test_a_key_of_a_policy_that_does_not_exist_stops_the_start(tmp_path, caplog, policy, hint):
    """Said with key, policy and the near name, instead of a 404 for every request of that key."""
    keys = keys_file(tmp_path, policy)
    with pytest.raises(SettingsError) as caught:
        async with stage(policies={"haiku": AS_ASKED}, keys=keys, upstream_api_key="sk-up"):
            pass
    assert f"the key `search-team` of `{keys}` names the policy `{policy}`" in caught.value.message
    assert hint in caught.value.hint
    assert not warnings(caplog)


async def test_a_reload_that_takes_a_tied_policy_away_is_warned_of(tmp_path, caplog):
    """The new set is in force, because its author wanted it; the log names key and policy. Back again: quiet."""
    keys = keys_file(tmp_path, "haiku")
    async with stage(policies={"haiku": AS_ASKED}, keys=keys, upstream_api_key="sk-up") as s:
        assert not warnings(caplog)
        (s.folder / "policies" / "haiku.yaml").unlink()
        await s.app.policies.reload()
        (said,) = set(warnings(caplog))
        assert "`search-team`" in said
        assert "`haiku`" in said
        caplog.clear()
        s.write_policy(AS_ASKED, "haiku")
        await s.app.policies.reload()
        assert not warnings(caplog)


async def test_the_owners_correction_is_read_at_the_start(tmp_path):
    """A file that says easy for everything moves every label; one that cannot be read stops the start."""
    path = tmp_path / "correction.json"
    path.write_bytes(write_correction(Correction(1.0, -20.0)))
    body = {"messages": [{"role": "user", "content": "Prove that there are infinitely many primes."}]}
    async with stage(policies={"default": AS_ASKED}, classifier_correction=str(path)) as s:
        assert s.app.classifier.label(body).p_hard < 0.5
    with pytest.raises(SettingsError, match="classifier_correction"):
        async with stage(policies={"default": AS_ASKED}, classifier_correction=str(tmp_path / "none.json")):
            pass
