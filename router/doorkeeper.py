"""Who may call: the router's own keys where it holds the upstream's, else whoever has a credential to pass on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path

from router.errors import MissingCredential, SettingsError
from router.keys import KeyRing, read_keys
from router.serve.headers import Credential
from router.settings import Settings
from router.web.api import Identity


def _load_keys(path: str) -> KeyRing:
    """The key ring of a file. Raises SettingsError."""
    try:
        data = Path(path).read_bytes()
    except OSError as exc:
        raise SettingsError(f"`keys`: cannot read `{path}`: {exc.strerror}") from exc
    return read_keys(path, data)


def client_keys(settings: Settings) -> KeyRing | None:
    """The keys that clients authenticate with; None where the router passes on credentials. Raises SettingsError."""
    return _load_keys(settings.keys) if settings.keys is not None and settings.upstream_api_key is not None else None


def checked_ties(
    settings: Settings, ring: KeyRing | None, policies: Mapping[str, object]
) -> tuple[tuple[str, str], ...]:
    """Keys with a policy of their own; SettingsError where there is no such policy: every request would be refused."""
    ties = tuple(ring.tied()) if ring is not None else ()
    for key, policy in ties:
        if policy not in policies:
            near = get_close_matches(policy, policies, 1)
            raise SettingsError(
                f"`keys`: the key `{key}` of `{settings.keys}` names the policy `{policy}`, which does not exist",
                hint=f"did you mean `{near[0]}`?" if near else f"`{settings.policies}` is the folder of policies",
            )
    return ties


def doorkeeper(settings: Settings, ring: KeyRing | None) -> Callable[[Credential], Identity]:
    """Who a credential is: a key of ours with the upstream's key in its place, or the client's own passed on."""
    if ring is not None and settings.upstream_api_key is not None:
        upstream = Credential(b"x-api-key", settings.upstream_api_key.encode())

        def identify(credential: Credential) -> Identity:
            key = ring.find(credential.secret())
            if key is None:
                raise MissingCredential("invalid x-api-key")
            return Identity(key.tenant, key.name, key.policy, upstream, key.max_concurrent)

        return identify
    # Without the owner's secret the hash is still one-way and of a domain of its own; API keys are long and random.
    secret = hashlib.sha256(b"model-router tenant\0" + (settings.tenant_secret or "").encode()).digest()

    def pass_on(credential: Credential) -> Identity:
        name = hashlib.blake2b(credential.secret(), key=secret, digest_size=16).hexdigest()
        return Identity(name, "", None, credential)

    return pass_on
