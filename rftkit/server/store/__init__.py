"""The platform's database, the files beside it, and the JSON objects that go over the wire."""
