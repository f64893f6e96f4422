"""Where objects lie: keys that leave no prefix, and names of stores without secrets."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import AzureStore, GCSStore, HTTPStore, LocalStore, MemoryStore, S3Store

from dbos_async._store.objects import ObjectStore, escaped, is_key, key_of, name_of, opened

IDS = st.text(min_size=1, max_size=300)


@given(IDS, IDS)
def test_two_names_are_never_one_part(one: str, other: str) -> None:
    assert (escaped(one) == escaped(other)) == (one == other)


@given(IDS, st.text(max_size=40))
def test_a_key_stays_in_its_place_and_is_known_again(workflow_id: str, what: str) -> None:
    key = key_of(workflow_id, what, "0123456789abcdef")
    assert is_key(key)
    assert key.isascii()
    assert all(0 < len(part) <= 100 for part in key.split("/"))


@pytest.mark.parametrize("workflow_id", ["../../etc", "..", ".", "a/b", "a\0b", "a\nb", "=2F", "~"])
def test_no_workflow_id_leaves_the_prefix(workflow_id: str) -> None:
    part, name = key_of(workflow_id, "input", "0").split("/")
    assert not set(part) & set("./\0\n~")
    assert name == "input-0"


@pytest.mark.parametrize(
    "key", ["", "a", "../b", "a/../b", "a/b/c", "/a/b", "a/", "a/b\n", "a/b#1", None, 1]
)
def test_other_keys_are_none_of_ours(key: object) -> None:
    assert not is_key(key)


async def test_an_object_goes_with_what_a_killed_process_had_begun(tmp_path: Path) -> None:
    store = ObjectStore(LocalStore(tmp_path))
    await store.put("w/result-1", [b"a", b"b"], 2)
    assert [chunk async for chunk in store.get("w/result-1")] == [b"ab"]
    (tmp_path / "w" / "result-1#7").write_bytes(b"half")
    (tmp_path / "w" / "result-2#1").write_bytes(b"another's")
    await store.delete(["w/result-1", "never/there-1"])
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["result-2#1"]
    with pytest.raises(FileNotFoundError):
        [chunk async for chunk in store.get("w/result-1")]


def test_a_store_has_one_name_in_every_process() -> None:
    assert name_of(S3Store("b", prefix="p/q", access_key_id="k", secret_access_key="s")) == (
        "s3://b/p/q"
    )
    assert name_of(GCSStore("b", skip_signature=True)) == "gs://b"
    assert name_of(AzureStore("c", account_name="a", skip_signature=True)) == "az://a/c"
    assert name_of(HTTPStore("http://host/x")) == "http://host/x"
    assert name_of(MemoryStore()) == "memory://"


def test_a_url_and_a_store_of_the_same_place_have_the_same_name(tmp_path: Path) -> None:
    by_url = opened(f"file://{tmp_path}")
    assert by_url is not None
    assert by_url.name == name_of(LocalStore(tmp_path)) == f"file://{tmp_path}"
    bucket = opened("s3://bucket/prefix?region=x")
    assert bucket is not None
    assert bucket.name == "s3://bucket/prefix"
    assert opened(None) is None
