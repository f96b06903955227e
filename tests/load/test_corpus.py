"""The sample corpus."""

from __future__ import annotations

from tasks.load.corpus import SampleCorpus
from tests.load.writers import contents, read


def test_the_corpus_holds_some_thousand_documents_that_questions_can_find() -> None:
    """Ids are qualified names and unique; the known ones are there."""
    documents, dead_letters = read("sample")
    ids = [document.id for document in documents]
    assert not dead_letters
    assert 3000 <= len(ids) == len(set(ids)) <= 8000
    assert {
        *("datetime.datetime.strptime", "time.strptime", "email.utils.parsedate", "json.loads", "re.sub", "math.sqrt"),
        *("itertools.chain", "functools.lru_cache", "os.listdir", "builtins.str.split", "textwrap.dedent"),
    } <= set(ids)
    assert not [name for name in ids if any(part.startswith("_") for part in name.split("."))]


def test_a_document_is_a_signature_and_a_docstring() -> None:
    """Its metadata says the module and what it is."""
    found = {document.id: document for document in SampleCorpus().documents()}
    loads = found["json.loads"]
    assert loads.text.startswith("json.loads(s, *, cls=None,")
    assert "Deserialize" in loads.text
    assert loads.metadata == {"module": "json", "kind": "function"}
    assert found["datetime.datetime.strptime"].metadata == {"module": "datetime", "kind": "method"}
    assert found["email.message.Message"].text.startswith("class email.message.Message\n\n")


def test_the_corpus_is_the_same_each_time() -> None:
    """A second run must find every document unchanged."""
    assert contents(list(SampleCorpus().documents())) == contents(list(SampleCorpus().documents()))


def test_no_text_tells_where_an_object_lies_in_memory() -> None:
    """It lies elsewhere in every process, and each run would find the document changed."""
    assert not [document.id for document in SampleCorpus().documents() if " at 0x" in document.text]
